"""Expanding rollouts: what each cut fits and predicts, the one number, the published held-out errors, and refusals."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit, minimize

from experiments.analysis.approach_plots import rollout_errors
from experiments.analysis.holdout import holdout
from experiments.analysis.laws import make_law
from experiments.analysis.on_loss import fit_on_loss, on_loss
from experiments.analysis.problem import make_problem
from experiments.analysis.rollout import rollout
from nanogpt.config import UserError
from tests.analysis.planted import published
from tests.analysis.tables import planted_runs, with_diverged


def test_every_cut_predicts_exactly_what_lies_above_it() -> None:
    runs = planted_runs(noise=0.001)
    found = rollout("chinchilla", runs, bootstrap=0)
    assert len(found.steps) == 5
    shares = [len(step.fit.points) / len(runs) for step in found.steps]
    np.testing.assert_allclose(shares, [0.5, 0.6, 0.7, 0.8, 0.9], atol=0.03)
    for step in found.steps:
        above = runs[runs["flops"] >= step.cut]
        assert set(found.table.loc[found.table["cut"] == step.cut, "id"]) == set(above["id"])
        assert step.fit.points["flops"].max() < step.cut
    assert found.beyond[0] > 1
    assert found.beyond[1] == pytest.approx(runs["flops"].max() / found.steps[0].fit.points["flops"].max())


def test_the_number_is_the_mean_over_cuts_of_the_mean_error() -> None:
    found = rollout("chinchilla", planted_runs(noise=0.003), bootstrap=0)
    each = [step.table["error"].abs().mean() for step in found.steps]
    assert found.error == pytest.approx(np.mean(each))
    assert found.max_error == pytest.approx(max(step.max_error for step in found.steps))
    assert f"Held-out error {found.error:.2%}" in found.sentence()
    assert "5 expanding cuts in flops and 17 held-out runs" in found.sentence()
    assert np.isnan(found.covered)
    assert "interval" not in found.sentence()


def test_a_law_without_noise_predicts_exactly() -> None:
    assert rollout("chinchilla", planted_runs(noise=0.0), bootstrap=0).error < 1e-8


def test_one_given_cut_is_a_holdout() -> None:
    runs = planted_runs()
    one = rollout("chinchilla", runs, cuts=[1e12], bootstrap=20)
    held = holdout("chinchilla", runs, below=1e12, bootstrap=20)
    np.testing.assert_array_equal(one.table["predicted"], held.table["predicted"])
    assert one.error == held.mean_error
    assert one.covered == held.table["inside"].mean()


def test_seeds_are_never_split_and_lost_runs_never_seen() -> None:
    runs = with_diverged(planted_runs(seeds=2), 60)
    found = rollout("chinchilla", runs, bootstrap=0)
    for step in found.steps:
        assert not set(step.fit.points["flops"]) & set(step.table["flops"])
    assert runs["id"][60] not in set(found.table["id"])


def test_a_cut_that_cannot_be_fitted_is_skipped_and_said() -> None:
    found = rollout("chinchilla", planted_runs(), cuts=[2e9, 1e12], bootstrap=0)
    assert [step.cut for step in found.steps] == [1e12]
    assert found.skipped[0].startswith("flops < 2e+09: fit: chinchilla has 5 parameters and needs at least 6 points")
    assert found.to_dict()["skipped"] == list(found.skipped)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (5, {}, "no cut in flops leaves runs to fit and runs to predict"),
        (35, {"by": "flop"}, "did you mean 'flops'"),
        (35, {"cuts": 0}, "cuts must be a whole number of at least 1, found 0"),
        (35, {"cuts": []}, r"cuts must be how many, or a list of values of flops, found \[\]"),
        (35, {"cuts": [1e30]}, "no finished run has flops >= 1e"),
        (1, {}, "needs two values of flops"),
    ],
)
def test_refusals(rows: int, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rollout("chinchilla", planted_runs().head(rows), bootstrap=0, **options)


def test_the_figure_has_a_point_per_prediction() -> None:
    found = rollout("chinchilla", planted_runs(), bootstrap=20)
    axes = rollout_errors(planted_runs(), rollout=found)
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in points) == len(found.table)
    drawn = np.sort(np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in points]))
    np.testing.assert_allclose(drawn, np.sort(100 * found.table["error"]))


OVER_TRAINING = make_law("gadre", n="N", d="D")
SMALL = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
# training set: E, a, b and eta as published to the digits of the paper's code, on C4's validation loss
GADRE = {"c4_original": (1.508, 141.3, 189.5, 0.1212), "rpj": (1.837, 212.2, 366.7, 0.1364),
         "rw_original": (1.735, 157.1, 246.2, 0.1272)}  # fmt: skip


def gadre(train_data: str) -> pd.DataFrame:
    """The five runs they fitted (four small sizes at 20 tokens per parameter, the smallest at 320) and the large ones
    they predicted."""
    table = published("gadre_overtraining.csv")
    table = table[table["train_data"] == train_data]
    small, at = table["model"].isin(SMALL), table["cc_mult"]
    kept = table[(small & (at == 1)) | ((table["model"] == SMALL[0]) & (at == 16)) | ~small]
    return kept.assign(flops=6.0 * kept["N"] * kept["D"])


def test_the_published_held_out_errors() -> None:
    """1.4B parameters at 640 tokens per parameter and 6.9B at 20, from five runs that cost 300 to 5,000 times less."""
    options = {"y": "loss_c4_val", "cuts": [1e20]}
    found = rollout(OVER_TRAINING, gadre("rpj"), fitter=fit_on_loss, **options)
    errors = 100 * found.table.set_index("id")["error"].abs()
    assert errors["rpj-open_lm_1b-32.0"] == pytest.approx(0.7103, abs=5e-5)
    assert errors["rpj-open_lm_7b-1.0"] == pytest.approx(0.7320, abs=5e-5)
    on_logs = rollout(OVER_TRAINING, gadre("rpj"), loss="lsq", bootstrap=0, **options)
    assert 100 * on_logs.table.set_index("id")["error"].abs()["rpj-open_lm_1b-32.0"] == pytest.approx(1.0493, abs=5e-4)


@pytest.mark.parametrize("train_data", GADRE)
def test_the_published_coefficients(train_data: str) -> None:
    table = gadre(train_data)
    found = fit_on_loss(OVER_TRAINING, table[table["flops"] < 1e20], y="loss_c4_val")
    assert found.converged
    assert tuple(found.params.values()) == pytest.approx(GADRE[train_data], rel=5e-4)  # E, a, b, eta in both forms


def test_on_the_loss_itself_it_is_what_curve_fit_finds() -> None:
    runs = planted_runs(noise=0.01)
    found = fit_on_loss("chinchilla", runs)

    def law(x: np.ndarray, *p: float) -> np.ndarray:
        return p[0] + p[1] * x[0] ** -p[3] + p[2] * x[1] ** -p[4]

    x = runs[["n_params_non_embedding", "tokens"]].to_numpy(dtype=float).T
    peer, _ = curve_fit(law, x, runs["val_loss"], p0=list(found.params.values()), ftol=1e-14, xtol=1e-14)
    assert list(found.params.values()) == pytest.approx(list(peer), rel=1e-4)
    assert found.objective <= ((law(x, *peer) - runs["val_loss"]) ** 2).sum() / 2 * (1 + 1e-9)
    assert "loss lsq on val_loss, summed" in found.summary()
    assert found.to_dict()["parameters"]["alpha"]["identified"]
    with pytest.raises(UserError, match="a profile needs a fit to ln val_loss"):
        found.profile("alpha")
    with pytest.raises(UserError, match="resample cannot be chosen"):
        fit_on_loss("chinchilla", runs, resample="residual")


@pytest.mark.parametrize(("loss", "delta"), [("huber", 1e-2), ("huber", 1e-3), ("lad", 1e-3)])
def test_robust_losses_of_the_loss_itself_reach_what_a_simplex_cannot_better(loss: str, delta: float) -> None:
    """Sums over L - measured as some packages minimise them; the derivatives of L are those of its differences."""
    runs = planted_runs(noise=0.01)
    found = fit_on_loss("chinchilla", runs, loss=loss, delta=delta, bootstrap=20)
    problem = make_problem(found.law, runs, "val_loss")

    def objective(theta: np.ndarray) -> float:
        size = np.abs(np.exp(problem.model.log_loss(theta[None])[0]) - runs["val_loss"].to_numpy())
        inside = np.minimum(size, delta)
        return float(size.sum() if loss == "lad" else (inside * (size - 0.5 * inside)).sum())

    best = problem.coordinates(found.params)[0]
    assert found.objective == pytest.approx(objective(best), rel=1e-9)
    rng, options = np.random.default_rng(0), {"xatol": 1e-12, "fatol": 1e-16, "maxfev": 2000}
    near = [minimize(objective, best + rng.normal(0, 0.01, 5), method="Nelder-Mead", options=options) for _ in range(3)]
    assert found.objective <= min(each.fun for each in near) * (1 + 1e-9)
    assert found.draws_converged == 1.0
    at, step = on_loss(problem).model, 1e-6 * np.eye(5)
    slopes = [(at.log_loss(best[None] + side)[0] - at.log_loss(best[None] - side)[0]) / 2e-6 for side in step]
    np.testing.assert_allclose(at.expand(best[None]).jacobian[0].T, slopes, rtol=1e-6, atol=1e-8)
