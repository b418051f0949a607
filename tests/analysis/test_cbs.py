"""Critical batch size: planted trade-offs and noise scales come back, intervals cover, open ends are said.

Those marked slow take under a minute together.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.cbs import TradeOff, noise_scale_curve, noise_scales, trade_off
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import Interval, fieller
from nanogpt.config import UserError

CRITICAL, MIN_STEPS, TARGET = 8192.0, 500.0, 2.5
BATCHES = [2**k for k in range(9, 18)]


def curves(
    batches: Any = BATCHES, seeds: int = 2, noise: float = 0.0, draw: int = 0, critical: float = CRITICAL
) -> pd.DataFrame:
    """Loss falls as a power of the progress S / (1 + B_crit / B), so that TARGET is reached at S_min of it."""
    rng = np.random.default_rng(draw)
    parts = []
    for batch in batches:
        for seed in range(seeds):
            pace = (1 + critical / batch) * math.exp(noise * rng.normal())
            steps = np.unique(np.geomspace(5 * pace, 2000 * pace, 400).round())
            loss = TARGET * (steps / pace / MIN_STEPS) ** -0.1
            parts.append(pd.DataFrame({"id": f"{batch}-{seed}", "step": steps, "tokens": steps * batch,
                                       "val_loss": loss, "learning_rate": 0.01}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def critical(found: TradeOff) -> Interval:
    assert isinstance(found.critical_batch, Interval), found.critical_batch
    return found.critical_batch


def test_a_planted_trade_off_comes_back() -> None:
    found = trade_off(curves(), TARGET)
    assert critical(found).value == pytest.approx(CRITICAL, rel=1e-3)
    assert found.min_steps == pytest.approx(MIN_STEPS, rel=1e-3)
    assert found.min_tokens == pytest.approx(MIN_STEPS * CRITICAL, rel=1e-3)
    product = (found.points["steps"] / found.min_steps - 1) * (found.points["tokens"] / found.min_tokens - 1)
    assert product.to_numpy() == pytest.approx(1, rel=0.02)


def test_the_default_target_is_one_that_every_run_reaches() -> None:
    found = trade_off(curves())
    assert len(found.points) == 2 * len(BATCHES)
    assert found.target == pytest.approx(TARGET * 4**-0.1, rel=1e-3)


@pytest.mark.slow
def test_the_interval_covers_at_its_rate() -> None:
    """90 % of 400 simulated studies, within 86 to 94 %."""
    found = [critical(trade_off(curves(noise=0.1, draw=draw, seeds=1), TARGET)) for draw in range(400)]
    covered = np.mean([each.lower <= CRITICAL <= each.upper for each in found])
    assert 0.86 <= covered <= 0.94, covered


def test_batches_that_bracket_nothing_leave_an_open_end() -> None:
    small = trade_off(curves(critical=1e7, noise=0.02), TARGET)
    assert critical(small).upper == math.inf
    assert critical(small).lower > max(BATCHES)
    large = trade_off(curves(critical=1.0, noise=0.02), TARGET)
    assert critical(large).lower == 0.0
    assert any("one end of the interval is open" in note for note in large.notes)


def test_two_batch_sizes_are_not_enough() -> None:
    found = trade_off(curves(batches=BATCHES[:2]), TARGET)
    assert isinstance(found.critical_batch, Refusal)
    assert "it takes 3 batch sizes that reach the loss, found 2" in found.sentence()


def test_what_spoils_the_count_is_said() -> None:
    table = curves()
    table.loc[table["step"] > 200, "learning_rate"] = 0.001
    found = trade_off(table, TARGET)
    assert any("the learning rate was falling" in note for note in found.notes)
    never = trade_off(table[(table["id"] != "512-0") | (table["val_loss"] > 2.6)], TARGET)
    assert "1 runs never reach it" in never.notes


def test_curves_without_evaluations_are_a_mistake() -> None:
    with pytest.raises(UserError, match="no curve has an evaluation"):
        trade_off(curves().assign(val_loss=np.nan))
    with pytest.raises(UserError, match="no column 'tokens'"):
        trade_off(curves().drop(columns="tokens"))


def measured(scale: float = 3000.0, runs: int = 1, lines: int = 60, noise: float = 0.5, draw: int = 0) -> pd.DataFrame:
    """Histories with unbiased, noisy estimates of |G|^2 = 0.01 and tr(Sigma) = scale * |G|^2."""
    rng = np.random.default_rng(draw)
    steps = np.arange(1, lines + 1) * 10
    return pd.concat([
        pd.DataFrame({
            "id": f"run{run}", "step": steps, "tokens": steps * 1024, "train_loss": 3.0,
            "gradient_square": 0.01 * (1 + noise * rng.normal(size=lines)),
            "gradient_variance": 0.01 * scale * (1 + 0.2 * noise * rng.normal(size=lines)),
        })
        for run in range(runs)
    ], ignore_index=True)  # fmt: skip


def test_noise_scales_are_ratios_of_means_with_covering_intervals() -> None:
    found = noise_scales(measured(runs=400))
    assert found is not None
    assert found.runs["measurements"].eq(31).all()
    covered = found.runs["lower"].le(3000) & found.runs["upper"].ge(3000)
    assert 0.86 <= covered.mean() <= 0.94
    assert found.runs["batch"].eq(1024).all()


def test_a_gradient_that_is_not_told_from_zero_leaves_the_scale_unbounded() -> None:
    found = noise_scales(measured(noise=30.0, lines=8))
    assert found is not None
    assert found.runs["upper"].iloc[0] == math.inf


def test_runs_without_measurements_have_no_scale() -> None:
    assert noise_scales(curves()) is None
    assert noise_scales(measured(lines=1)) is None


def test_a_scale_that_grows_is_seen_to() -> None:
    table = measured(noise=0.05, lines=400)
    table["gradient_square"] /= table["step"] / 1000
    found = noise_scale_curve(table, windows=4)
    assert found["noise_scale"].is_monotonic_increasing
    assert found["tokens_seen"].to_list() == pytest.approx([(k + 0.5) / 4 * 400 * 10 * 1024 for k in range(4)])


def test_fieller_is_the_plain_ratio_where_the_bottom_is_certain() -> None:
    tops = np.array([1.0, 2.0, 3.0, 4.0])
    found = fieller(tops, np.full(4, 2.0))
    half = 2.3533634348 * tops.std(ddof=1) / 2
    assert (found.value, found.lower, found.upper) == pytest.approx((1.25, (2.5 - half) / 2, (2.5 + half) / 2))
