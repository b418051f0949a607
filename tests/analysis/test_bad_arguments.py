"""What comparisons, laws of optima, approaches, rollouts, batch sizes are called with: a slip is one clear line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.approaches import compare_approaches
from experiments.analysis.cbs import noise_scale_curve, noise_scales, trade_off
from experiments.analysis.compare import compare, effective_speedup
from experiments.analysis.hyper import hyper_law
from experiments.analysis.optimum import find_optima
from experiments.analysis.parabola import Refusal
from experiments.analysis.rollout import rollout
from nanogpt.config import UserError

RATE, N = "optimizer.learning_rate", "n_params_non_embedding"


def runs() -> pd.DataFrame:
    """Two optimizers at four sizes, five rates and two seeds."""
    rows = [
        {"id": f"{kind}{rank}-{k}-{seed}", "status": "completed", "seed": seed, "optimizer.kind": kind, RATE: 2.0**k,
         N: 4.0**rank * 1000, "tokens": 5e5 * 2.0**rank, "flops": 8.0**rank * 1e9,
         "val_loss": 2 + 3 * 8.0 ** (-0.2 * rank) + 0.05 * (k + 6) ** 2 + 0.01 * seed + 0.02 * (kind == "adamw")}
        for kind in ("adamw", "muon") for rank in range(4) for k in range(-8, -3) for seed in (1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def curves() -> pd.DataFrame:
    steps = np.arange(1, 50)
    return pd.concat([
        pd.DataFrame({"id": str(batch), "step": steps, "tokens": steps * batch, "train_loss": 3.0,
                      "val_loss": 3 * (steps / (1 + 900 / batch)) ** -0.1, "gradient_square": 1.0,
                      "gradient_variance": 500.0})
        for batch in (256, 512, 1024, 2048)
    ], ignore_index=True)  # fmt: skip


def compared(table: Any = None, **options: Any) -> Any:
    given = {"factor": "kind", "baseline": "adamw", "candidate": "muon", **options}
    return compare(runs() if table is None else table, **given)


def law(**options: Any) -> Any:
    return hyper_law(runs()[lambda t: t["optimizer.kind"] == "muon"], RATE, **{"sizes": [N], **options})


def approaches(**options: Any) -> Any:
    return compare_approaches(runs(), **options)


def rolled(**options: Any) -> Any:
    return rollout("power_law", runs(), **options)


def traded(table: Any = None, **options: Any) -> Any:
    return trade_off(curves() if table is None else table, **options)


def predicted(**sizes: Any) -> Any:
    return law(bootstrap=0).predict(**sizes)


def test_the_tables_of_these_tests_are_sound() -> None:
    assert compared().outcome == "win"
    assert predicted(n_params_non_embedding=2000).value == pytest.approx(2**-6)
    assert traded().points["batch"].nunique() == 4
    assert noise_scales(curves()) is not None


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (compared, {"level": 90}, "compare: level must lie between 0 and 1, such as 0.9, found 90; did you mean"),
        (compared, {"level": "high"}, "compare: level must be a number, found 'high'"),
        (compared, {"level": float("nan")}, "found nan"),
        (compared, {"level": True}, "found True"),
        (compared, {"table": [1, 2]}, "compare: the table must be a DataFrame or a mapping of columns, found list"),
        (compared, {"table": runs().drop(columns="flops")}, "compare: no column 'flops'"),
        (compared, {"table": runs().drop(columns="val_loss")}, "compare: no column 'val_loss'"),
        (compared, {"table": pd.concat([runs(), runs()[["flops"]]], axis=1)}, "the table has 2 columns called 'flops'"),
        (compared, {"factor": 3}, "compare: a column goes by its name, found 3"),
        (compared, {"x": None}, "compare: a column goes by its name, found None"),
        (compared, {"candidate": "moun"}, "optimizer.kind = 'moun'; did you mean 'muon'"),
        (compared, {"candidate": 2}, "optimizer.kind = 2; allowed: 'adamw', 'muon'"),
        (compared, {"candidate": ["muon"]}, r"optimizer.kind = \['muon'\]; allowed: 'adamw', 'muon'"),
        (compared, {"where": 7}, "compare.where: a filter is text such as"),
        (compared, {"table": runs().assign(seed=np.nan)}, "compare: seed of adamw0--8-1 is nan"),
        (law, {"sizes": []}, r"hyper law: sizes must be a list of columns such as \['n_params_non_embedding'\], found"),
        (law, {"sizes": "tokens"}, "found 'tokens'"),
        (law, {"sizes": [N, N]}, "must be a list of columns"),
        (law, {"sizes": [3]}, "must be a list of columns"),
        (law, {"sizes": ["tokns"]}, "hyper law: no column 'tokns'; did you mean 'tokens'"),
        (law, {"sizes": [RATE]}, "cannot be a size of its own law"),
        (law, {"level": 0}, "hyper law: level must lie between 0 and 1"),
        (law, {"window": 0}, "window must be a whole number of at least 1, found 0"),
        (law, {"bootstrap": -1}, "bootstrap must be a whole number of at least 0, found -1"),
        (predicted, {}, "hyper law: predict: needs n_params_non_embedding, and n_params_non_embedding is missing"),
        (predicted, {"n_params": 5}, "hyper law: predict: no column 'n_params'; "),
        (predicted, {N: -5}, "n_params_non_embedding must be positive and finite, found -5"),
        (predicted, {N: float("nan")}, "found nan"),
        (predicted, {N: "big"}, "found 'big'"),
        (approaches, {"window": 1}, "approaches: window must be a whole number of at least 4, found 1"),
        (approaches, {"at": -1}, "approaches: at must be positive and finite, found -1"),
        (approaches, {"at": 0}, "found 0"),
        (approaches, {"noise": "big"}, "approaches: noise must be a number of at least 0 or a function"),
        (approaches, {"budgets": 1}, "approaches: budgets must be a whole number of at least 3, found 1"),
        (approaches, {"budgets": [1e9, -1]}, "approaches: each of budgets must be positive and finite, found -1"),
        (approaches, {"draws": -3}, "approaches: draws must be a whole number of at least 0, found -3"),
        (approaches, {"curves": 3}, "approaches: curves must be a DataFrame or a mapping of columns, found int"),
        (rolled, {"cuts": "5"}, "rollout: cuts must be a whole number of at least 1, found '5'"),
        (rolled, {"cuts": [1e9, "x"]}, "rollout: each of cuts must be a number, found 'x'"),
        (rolled, {"cuts": True}, "rollout: cuts must be a whole number of at least 1, found True"),
        (rolled, {"cuts": 2.5}, "rollout: cuts must be a whole number"),
        (rolled, {"interval": 95}, "rollout: interval must lie between 0 and 1, such as 0.9, found 95; did you mean"),
        (rolled, {"y": "loss"}, "rollout: no column 'loss'; did you mean 'val_loss'"),
        (rolled, {"by": 3}, "rollout: a column goes by its name"),
        (traded, {"target": "low"}, "trade-off: target must be a finite number, found 'low'"),
        (traded, {"target": float("nan")}, "found nan"),
        (traded, {"level": 2}, "trade-off: level must lie between 0 and 1"),
        (traded, {"y": "vall_loss"}, "trade-off: no column 'vall_loss'; did you mean 'val_loss'"),
        (traded, {"table": 3}, "trade-off: curves must be a DataFrame or a mapping of columns, found int"),
    ],
)  # fmt: skip
def test_a_slip_is_one_clear_line(call: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(**options)
    assert "\n" not in str(caught.value)


def test_the_rest_of_the_batch_sizes_arguments() -> None:
    with pytest.raises(UserError, match=r"share must be the two ends of a part of the training.*found \(0.9, 0.1\)"):
        noise_scales(curves(), (0.9, 0.1))
    with pytest.raises(UserError, match=r"windows must be a whole number of at least 1, found 0"):
        noise_scale_curve(curves(), 0)
    with pytest.raises(UserError, match="noise scales: no column 'step'"):
        noise_scales(curves().drop(columns="step"))
    with pytest.raises(UserError, match=r"effective_speedup: needs the fit of a power law.*found dict"):
        effective_speedup({}, 2.0, 1.0)  # type: ignore[arg-type]  # the mistake that is tested


@pytest.mark.parametrize(
    ("loss", "why"),
    [(loss, r"; a law takes logarithms, so every value must be finite and positive \(1 of 40 are not")
     for loss in (np.nan, np.inf, -0.5, 0.0)] + [("n/a", ", of type str, not a number")],
)  # fmt: skip
def test_a_finished_run_without_a_usable_loss_is_named(loss: Any, why: str) -> None:
    """Left out, it would take its level with it, and a false reason would be given."""
    table = runs()
    table["val_loss"] = table["val_loss"].astype(object)
    table.loc[table["id"] == "muon2--6-1", "val_loss"] = loss
    wanted = rf"compare: val_loss of muon2--6-1 is {loss!r}{why}"
    with pytest.raises(UserError, match=wanted):
        compared(table)
    assert compared(table, where="id != 'muon2--6-1'").notes[0] == "muon: 1 settings lack a seed and were left out"
    if loss not in (-0.5, 0.0):
        with pytest.raises(UserError, match=f"optimum: val_loss of muon2--6-1 is {loss!r}"):
            find_optima(table, RATE, N, panel="kind")


def test_runs_without_a_result_are_counted_among_the_notes() -> None:
    """A candidate that diverged wherever compute was highest must not look as if it had not been tried there."""
    table = runs()
    lost = (table["optimizer.kind"] == "muon") & (table["flops"] == table["flops"].max())
    found = compared(table.assign(status=np.where(lost, "diverged", "completed")))
    assert found.notes == ("muon: 10 diverged have no result to compare",)
    assert (found.levels["variant"] == "muon").sum() == 3


def test_a_flat_loss_has_no_optimum_and_is_called_flat() -> None:
    found = find_optima(runs().assign(val_loss=2.5), RATE, N, panel="kind")
    optima = [size.optimum for panel in found.panels for size in panel.sizes]
    reasons = {optimum.reason for optimum in optima if isinstance(optimum, Refusal)}
    assert all(isinstance(optimum, Refusal) for optimum in optima)
    assert reasons == {"the loss is flat: it is the same at every value tried, so none is best"}


def test_trials_of_a_search_are_compared_at_their_best_and_have_no_optimum() -> None:
    """As `run_search(sampler="tpe")` leaves them: rates of their own in every trial, more of them for one variant."""
    rng = np.random.default_rng(0)
    table = runs().drop(columns=RATE)
    table = pd.concat([table, table[table["optimizer.kind"] == "muon"]], ignore_index=True)
    table["trial"] = np.arange(len(table)) // 2
    table[RATE] = np.repeat(10 ** rng.uniform(-4, -1, len(table) // 2), 2)
    table["val_loss"] += np.repeat(rng.uniform(0.0, 0.1, len(table) // 2), 2)
    found = compared(table)
    assert found.levels["setting"].str.startswith("learning_rate=").all()
    assert len(found.levels) == 8
    assert any("adamw the best of 20 settings and muon the best of 40 settings" in note for note in found.notes)
    with pytest.raises(UserError, match=r"these runs are trials of a search, whose values of optimizer.learning_rate"):
        hyper_law(table, RATE, [N])
