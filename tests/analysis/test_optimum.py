"""Optima: planted parabolas come back exactly, noisy ones are covered, and what the data do not hold is refused.

Those marked slow take under a minute together.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.optimum import Estimate, Panel, SizeOptimum, find_optima
from experiments.analysis.parabola import Refusal
from nanogpt.config import UserError

RATE, WIDTH = "optimizer.learning_rate", "model.n_embd"
BEST = {32: -7.3, 64: -8.3, 128: -9.3}  # one octave per doubling
CURVE, FLOOR = 0.05, 2.3


def basins(
    best: dict[int, float] = BEST, seeds: int = 1, noise: float = 0.0, draw: int = 0, **more: Any
) -> pd.DataFrame:
    """A parabola per width over ten octaves, the same shift for all rates of a seed plus noise of its own."""
    rng = np.random.default_rng(draw)
    rows = [
        {"status": "completed", "seed": seed, RATE: 2.0**k, WIDTH: width,
         "val_loss": FLOOR + 0.01 * seed + CURVE * (k - at) ** 2 + rng.normal(0, noise), **more}
        for width, at in best.items() for seed in range(1, seeds + 1) for k in range(-12, -2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def only(runs: pd.DataFrame, **options: Any) -> Panel:
    """The panel of a table that has one."""
    (panel,) = find_optima(runs, "learning_rate", "n_embd", **options).panels
    return panel


def number(found: Estimate | Refusal) -> float:
    assert isinstance(found, Estimate), found
    return found.value


def reason(found: Estimate | Refusal) -> str:
    assert isinstance(found, Refusal), found
    return found.reason


def sizes(panel: Panel) -> dict[int, SizeOptimum]:
    return {size.size: size for size in panel.sizes}


@pytest.mark.parametrize("window", [1, 2, 3])
def test_planted_parabolas_come_back(window: int) -> None:
    panel = only(basins(), window=window)
    for width, size in sizes(panel).items():
        assert number(size.optimum) == pytest.approx(BEST[width], abs=1e-9)
        assert size.loss == pytest.approx(FLOOR + 0.01, abs=1e-9)
        assert size.curvature == pytest.approx(CURVE, abs=1e-9)
        assert size.points["fitted"].sum() == 2 * window + 1


def test_a_shift_of_one_octave_is_a_drift_of_one_and_costs_the_curvature() -> None:
    panel = only(basins())
    found = sizes(panel)
    assert (number(found[32].drift), number(found[32].regret)) == (0, 0)
    assert number(found[64].drift) == pytest.approx(-1, abs=1e-9)
    assert number(found[128].drift) == pytest.approx(-2, abs=1e-9)
    assert number(found[64].regret) == pytest.approx(CURVE, abs=1e-9)
    assert number(found[128].regret) == pytest.approx(4 * CURVE, abs=1e-9)
    assert panel.slope is not None
    assert panel.slope.value == pytest.approx(-1, abs=1e-9)


def test_the_base_may_be_named() -> None:
    found = sizes(only(basins(), base=128))
    assert number(found[32].drift) == pytest.approx(2, abs=1e-9)
    assert number(found[128].drift) == 0


def test_one_seed_gives_no_interval() -> None:
    panel = only(basins(noise=0.002))
    for size in panel.sizes:
        assert not any(number.has_interval for number in (size.optimum, size.drift, size.regret))
        assert np.isnan(size.seed_sd)
    assert panel.slope is not None
    assert not panel.slope.has_interval


def test_no_bootstrap_gives_no_interval() -> None:
    assert not only(basins(seeds=3, noise=0.002), bootstrap=0).sizes[1].drift.has_interval


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes on a machine that does other things, too
def test_intervals_over_three_seeds_cover_what_was_planted() -> None:
    """60 tables: fewer than 51 covered would happen to honest 95 % intervals less than once in ten thousand times."""
    covered = {"drift": 0, "regret": 0}
    for draw in range(60):
        size = sizes(only(basins(seeds=3, noise=0.01, draw=draw), bootstrap=60))[128]
        assert isinstance(size.drift, Estimate)
        assert isinstance(size.regret, Estimate)
        covered["drift"] += size.drift.lower <= -2 <= size.drift.upper
        covered["regret"] += size.regret.lower <= 4 * CURVE <= size.regret.upper
        assert size.drift.upper - size.drift.lower < 1, "an interval that says nothing covers everything"
    assert min(covered.values()) >= 51


def test_seeds_that_only_shift_the_loss_do_not_widen_anything() -> None:
    """Seeds are paired: what a seed adds to every rate and size moves no optimum."""
    size = sizes(only(basins(seeds=3)))[64]
    assert isinstance(size.drift, Estimate)
    assert size.drift.upper - size.drift.lower < 1e-9
    assert size.seed_sd == pytest.approx(0.01)


def test_the_same_table_gives_the_same_numbers_and_another_seed_others() -> None:
    runs = basins(seeds=3, noise=0.01)
    one, two, other = (only(runs, seed=seed).sizes[1].drift for seed in (0, 0, 1))
    assert one == two
    assert number(one) == number(other)
    assert one != other


@pytest.mark.parametrize(("at", "side"), [(-13.0, "lower"), (-2.0, "upper")])
def test_an_optimum_at_the_edge_is_refused(at: float, side: str) -> None:
    found = sizes(only(basins({32: -7.3, 64: at})))
    words = f"the lowest loss lies at the {side} edge of the values tried"
    assert reason(found[64].optimum) == words
    assert reason(found[64].drift) == words
    assert reason(found[64].regret) == words
    assert not found[64].points["fitted"].any()


def test_without_the_base_s_optimum_nothing_is_compared() -> None:
    panel = only(basins({32: -2.0, 64: -7.3}))
    found = sizes(panel)
    assert number(found[64].optimum) == pytest.approx(-7.3)
    assert reason(found[64].drift).startswith("the base has no optimum: the lowest loss lies at the upper edge")
    assert reason(found[64].regret).startswith("the base has no optimum")
    assert panel.slope is None


def diverge(runs: pd.DataFrame, width: int, above: float, seeds: tuple[int, ...]) -> pd.DataFrame:
    lost = (runs[WIDTH] == width) & (runs[RATE] > above) & runs["seed"].isin(seeds)
    return runs.assign(status=runs["status"].where(~lost, "diverged"), val_loss=runs["val_loss"].where(~lost))


def test_diverged_runs_are_counted_and_not_fitted() -> None:
    """A mean over the seeds that survived would be too good: the rate is left out for all of them."""
    size = sizes(only(diverge(basins(seeds=3), 64, 2.0**-7, (2,))))[64]
    assert number(size.optimum) == pytest.approx(-8.3, abs=1e-9)
    assert size.points["diverged"].tolist() == [0] * 6 + [1] * 4
    assert size.points["runs"].tolist() == [3] * 6 + [2] * 4
    assert size.points["mean"].isna().tolist() == [False] * 6 + [True] * 4


def test_an_optimum_beside_divergence_is_refused() -> None:
    found = sizes(only(diverge(basins(), 64, 2.0**-9, (1,))))
    assert reason(found[64].optimum) == "the lowest loss lies at the upper edge of the values that every seed finished"


def test_a_regret_is_not_read_where_runs_diverged() -> None:
    """The wide model has its optimum, but the base's rate lies where it diverges."""
    found = sizes(only(diverge(basins(), 128, 2.0**-8, (1,))))
    assert number(found[128].drift) == pytest.approx(-2, abs=1e-9)
    assert reason(found[128].regret) == (
        "no loss can be read at the base's optimum: it lies outside the values that can be used"
    )


def test_a_hole_beside_the_lowest_loss_brackets_nothing() -> None:
    runs = basins({32: -7.3})
    holes = runs[RATE].isin([2.0**-6, 2.0**-5, 2.0**-8])
    size = only(runs.assign(status=runs["status"].where(~holes, "failed"))).sizes[0]
    assert reason(size.optimum) == "next to the lowest loss lie values that cannot be used, so nothing brackets it"


@pytest.mark.parametrize(
    ("losses", "window", "words"),
    [
        ([1.0, 3, 3, 3, 0.9, 3, 3, 3, 3, 1.0], 9, "the losses around the lowest one do not curve upwards"),
        ([4, 1.2, 1.2, 0.6, 0.7, 0.601, 4, 4, 4, 4], 2, "the fitted minimum lies outside the values it was fitted to"),
    ],
)
def test_what_is_no_parabola_is_refused(losses: list[float], window: int, words: str) -> None:
    runs = basins({32: -7.3}).assign(val_loss=losses)
    assert reason(only(runs, window=window).sizes[0].optimum) == words


def test_fewer_than_three_values_are_refused() -> None:
    runs = basins({32: -7.3})
    size = only(runs[runs[RATE] >= 2.0**-4]).sizes[0]
    assert reason(size.optimum) == "only 2 of 2 values tried can be used, and a parabola needs 3"


def test_an_interval_that_hides_failures_is_not_given() -> None:
    """Where some resamples have their lowest mean at the edge, a deviation over the others would flatter."""
    runs = basins({32: -7.3, 64: -11.3}, seeds=3, noise=0.04, draw=2)
    size = sizes(only(runs))[64]
    assert isinstance(size.optimum, Estimate)
    assert not size.optimum.has_interval


def test_panels_are_kept_apart_in_the_order_of_the_table() -> None:
    two = pd.concat([basins(**{"parametrization.mode": "sp"}), basins({32: -7.3, 64: -7.3}, **{
        "parametrization.mode": "mup"})], ignore_index=True)  # fmt: skip
    optima = find_optima(two, "learning_rate", "n_embd", "mode")
    assert [panel.value for panel in optima.panels] == ["sp", "mup"]
    assert number(sizes(optima.panels[1])[64].drift) == pytest.approx(0, abs=1e-9)


def test_a_gap_in_the_sizes_leaves_them_whole_numbers() -> None:
    gap = pd.DataFrame([{"status": "completed", "seed": 1, RATE: 0.01, WIDTH: None, "val_loss": 2.0}])
    panel = only(pd.concat([basins(), gap], ignore_index=True))
    assert [str(size.size) for size in panel.sizes] == ["32", "64", "128"]


def test_rows_can_be_chosen_and_a_second_factor_is_noticed() -> None:
    two = pd.concat([basins(**{"train.batch_size": 8}), basins(**{"train.batch_size": 16})], ignore_index=True)
    with pytest.raises(UserError, match="size 32 and seed 1: something else varies too"):
        only(two)
    assert number(only(two, where="batch_size == 8").sizes[1].drift) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"x": "learning_rat"}, "optimum: no column 'learning_rat'; did you mean 'learning_rate'?"),
        ({}, {"base": 48}, "optimum: base 48 is not among the sizes 32, 64, 128"),
        ({RATE: 0.0}, {}, "must be a number above 0"),
    ],
)
def test_mistakes(change: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_optima(basins().assign(**change), **{"x": "learning_rate", "per": "n_embd", **options})
    assert message in str(caught.value)
