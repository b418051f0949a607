"""Fitting: outliers, determinism, coverage, clusters, what is dropped and why, notes, refusals, published tables."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.fit import fit
from experiments.analysis.laws import Chinchilla, SaturatingPowerLaw, Term, make_law
from nanogpt.config import UserError
from tests.analysis.tables import PLANTED, planted_runs, with_diverged

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_huber_shrugs_off_an_outlier_that_moves_least_squares() -> None:
    runs = planted_runs(noise=0.0005)
    runs.loc[34, "val_loss"] *= 1.15
    robust, squares = (fit("chinchilla", runs, loss=loss, bootstrap=0) for loss in ("huber", "lsq"))
    assert robust.params["E"] == pytest.approx(PLANTED["E"], rel=0.005)
    assert abs(squares.params["E"] / PLANTED["E"] - 1) > 0.02
    assert robust.residuals.iloc[34] == pytest.approx(np.log(1.15), rel=0.05)


def test_no_perturbation_of_the_optimum_is_better() -> None:
    """The reported objective is the summed Huber loss of ln L residuals, and a minimum of it (also for LAD)."""
    runs = planted_runs(noise=0.005)
    rng = np.random.default_rng(1)
    for loss in ("huber", "lad", "lsq"):
        result = fit("chinchilla", runs, loss=loss, bootstrap=0)

        def objective(params: dict[str, float], loss: str = loss, law: Chinchilla = result.law) -> float:
            r = np.abs(np.log(runs["val_loss"]) - np.log(law.predict(params, runs)))
            inside = np.minimum(r, 1e-3)
            return float({"huber": inside * (r - inside / 2), "lad": r, "lsq": r * r / 2}[loss].sum())

        assert objective(result.params) == pytest.approx(result.objective, rel=1e-6)
        for _ in range(300):
            scale = 10.0 ** rng.uniform(-7, -1)
            moved = {name: value * np.exp(rng.normal(0, scale)) for name, value in result.params.items()}
            assert objective(moved) >= result.objective * (1 - 1e-7)


def test_same_seed_same_intervals_and_another_seed_others() -> None:
    runs = planted_runs()
    one, again, other = (fit("chinchilla", runs, bootstrap=50, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one.draws, again.draws)
    pd.testing.assert_frame_equal(one.predict(runs), again.predict(runs))
    assert one.params == other.params
    assert not one.draws.equals(other.draws)


def test_bootstrap_intervals_cover_about_as_often_as_they_say() -> None:
    """90 % intervals of alpha over 60 noisy tables: a binomial count, 5 standard deviations wide."""
    x = np.geomspace(1e8, 1e13, 40)
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"flops": x, "val_loss": (1.9 + 900 * x**-0.3) * np.exp(rng.normal(0, 0.003, 40))})
        lower, upper = fit("saturating_power_law", table, loss="lsq", bootstrap=200).conf_int(0.9).loc["alpha"]
        covered += lower <= 0.3 <= upper
    assert 42 <= covered <= 60


def test_prediction_intervals_cover_new_runs() -> None:
    result = fit("chinchilla", planted_runs(noise=0.005, seed=1))
    fresh = planted_runs(noise=0.005, seed=2)
    predicted = result.predict(fresh)
    assert list(predicted.columns) == ["predicted", "lower", "upper"]
    assert fresh["val_loss"].between(predicted["lower"], predicted["upper"]).mean() >= 0.85
    assert ((predicted["upper"] - predicted["lower"]) / predicted["predicted"]).max() < 0.06


def test_clusters_are_resampled_whole() -> None:
    runs = planted_runs(noise=0.002)
    copies = pd.concat([runs] * 4, ignore_index=True)
    plain, clustered = fit("chinchilla", copies), fit("chinchilla", copies, cluster="id")
    assert clustered.stderr["E"] > 1.5 * plain.stderr["E"], "copies of a run are no new evidence"
    with pytest.raises(UserError, match="cluster seed has 1 distinct"):
        fit("chinchilla", runs, cluster="seed")


def test_every_dropped_row_has_its_reason() -> None:
    runs = with_diverged(planted_runs(), 5)
    runs["excluded"] = None
    runs.loc[6, "excluded"] = "loss spike"
    result = fit("chinchilla", runs, where="n_embd >= 12 and tokens > 2e5", bootstrap=0)
    reasons = dict(zip(result.dropped["id"], result.dropped["reason"], strict=True))
    assert len(result.points) + len(result.dropped) == len(runs)
    assert reasons[runs["id"][5]] == "status diverged"
    assert reasons[runs["id"][6]] == "excluded: loss spike"
    assert reasons[runs["id"][0]] == "not where n_embd >= 12 and tokens > 2e5"


def test_inputs_that_move_together_are_called_unidentified() -> None:
    runs = planted_runs(noise=0.003)
    runs["tokens"] = 20.0 * runs["n_params_non_embedding"] * np.exp(np.random.default_rng(0).normal(0, 1e-4, len(runs)))
    runs["val_loss"] = Chinchilla().predict(PLANTED, runs)
    result = fit("chinchilla", runs, bootstrap=20)
    assert result.condition > 1e9
    assert any("hardly move apart" in note for note in result.notes)


def test_a_pure_power_law_has_no_floor_and_says_so() -> None:
    x = np.geomspace(1e8, 1e12, 20)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"flops": x, "val_loss": 50 * x**-0.1 * np.exp(rng.normal(0, 0.01, 20))})
    notes = " ".join(fit("saturating_power_law", table).notes)
    assert "E is not identified" in notes or "E sits at its bound 0" in notes


def test_an_exponent_at_its_bound_is_named() -> None:
    runs = planted_runs()
    runs["val_loss"] = 2.0 + 300 / runs["tokens"] ** 0.45 + 0.01 * np.log(runs["n_params_non_embedding"])
    assert any(note.startswith(("alpha", "A ")) for note in fit("chinchilla", runs).notes)


def test_summary_and_dictionary_tell_the_same() -> None:
    result = fit("chinchilla", planted_runs(), bootstrap=40)
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["parameters"]["E"]["value"] == result.params["E"]
    assert told["points_used"] == 35
    for word in ("huber(delta=0.001)", "35 points used, 0 dropped", "starts agree", "condition number", "converged"):
        assert word in result.summary()


def test_without_bootstrap_there_are_no_intervals() -> None:
    result = fit("chinchilla", planted_runs(), bootstrap=0)
    assert result.conf_int().isna().all(axis=None)
    assert np.isnan(result.stderr["E"])
    assert result.predict(planted_runs())["lower"].isna().all()
    json.dumps(result.to_dict(), allow_nan=False)


REFUSALS = [
    pytest.param({"rows": 5}, "5 parameters and needs at least 6 points, found 5", id="too-few"),
    pytest.param({"set": ("val_loss", 3, np.nan)}, "val_loss of 000000000003 is nan", id="nan-loss"),
    pytest.param({"set": ("val_loss", 3, np.inf)}, "val_loss of 000000000003 is inf", id="infinite-loss"),
    pytest.param({"set": ("tokens", 3, 0.0)}, "tokens of 000000000003 is 0.0", id="zero-tokens"),
    pytest.param({"fill": ("tokens", 1e6)}, "every point has tokens = 1e\\+06", id="one-value"),
    pytest.param({"fill": ("val_loss", 2.5)}, "every point has val_loss = 2.5; a constant loss", id="constant-loss"),
    pytest.param({"options": {"loss": "hubber"}}, "did you mean 'huber'", id="loss-name"),
    pytest.param({"options": {"delta": 0.0}}, "delta must be positive", id="delta"),
    pytest.param({"options": {"y": "val_los"}}, "did you mean 'val_loss'", id="column"),
    pytest.param({"options": {"where": "n_embd > 1000"}}, "found 0 \\(35 dropped\\)", id="nothing-left"),
]


@pytest.mark.parametrize(("case", "message"), REFUSALS)
def test_refusals_are_one_clear_line(case: dict, message: str) -> None:
    runs = planted_runs().head(case.get("rows", 35)).copy()
    if "set" in case:
        column, row, value = case["set"]
        runs.loc[row, column] = value
    if "fill" in case:
        runs[case["fill"][0]] = case["fill"][1]
    with pytest.raises(UserError, match=message) as caught:
        fit("chinchilla", runs, **case.get("options", {}))
    assert "\n" not in str(caught.value)


def test_a_run_of_no_variant_is_refused() -> None:
    runs = planted_runs().assign(variant="a")
    runs.loc[3, "variant"] = np.nan
    with pytest.raises(UserError, match="variant of 000000000003 is missing"):
        fit(make_law("shared_exponent", group="variant"), runs)


def test_as_many_different_inputs_as_parameters() -> None:
    runs = planted_runs(seeds=5)
    runs = runs[runs["n_params_non_embedding"].isin([1536.0, 98304.0]) & (runs["tokens"].isin([2**17, 2**22]))]
    with pytest.raises(UserError, match=r"5 parameters and needs as many different .* found 4"):
        fit("chinchilla", runs)


@dataclass(frozen=True)
class OverTraining(Chinchilla):
    """L = E + A N^-alpha + B D^-alpha: over-training, Gadre et al. 2024 (arXiv 2403.08540), eta = alpha / 2."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("E"), Term("A", (("alpha", self.n),)), Term("B", (("alpha", self.d),)))


def test_published_over_training_law() -> None:
    """Gadre et al. 2024 on RedPajama: five small runs give E 1.837, eta .1364 (they fit L, we ln L) and predict the
    1.4B model trained for 640 tokens per parameter and the 6.9B model, 0.71 % and 0.73 % in the paper."""
    path = DATA / "gadre_overtraining.csv"
    if not path.exists():
        pytest.skip(f"no table at {path}: published data is not part of the project")
    table = pd.read_csv(path).astype({"N": float, "D": float})
    table = table[table["train_data"] == "rpj"]
    small = table[table["cc_mult"] == 1].nsmallest(4, "N")
    longest = table[(table["N"] == table["N"].min()) & (table["cc_mult"] == 16)]
    result = fit(OverTraining(n="N", d="D"), pd.concat([small, longest]), y="loss_c4_val", loss="lsq", bootstrap=0)
    assert result.params["E"] == pytest.approx(1.837, abs=0.04)
    assert result.params["alpha"] / 2 == pytest.approx(0.1364, abs=0.003)
    large = table[(table["N"] > 1.4e9) & ((table["cc_mult"] == 32) | (table["N"] > 6e9))]
    assert len(large) == 2
    assert (result.predict(large)["predicted"] / large["loss_c4_val"] - 1).abs().max() < 0.012


def test_frontier_law_of_a_published_isoflop_table() -> None:
    """Porian et al. 2024: the lowest loss at each of 12 budgets follows a saturating power law to within 2 %."""
    path = DATA / "porian_isoflops.csv"
    if not path.exists():
        pytest.skip(f"no table at {path}: published data is not part of the project")
    table = pd.read_csv(path)
    one = table[table["config"] == table.loc[table["set"] == "rw", "config"].iloc[0]]
    best = one.groupby("flops", as_index=False)["loss"].min()
    result = fit(SaturatingPowerLaw(), best, y="loss", bootstrap=0)
    assert result.residuals.abs().max() < 0.02
