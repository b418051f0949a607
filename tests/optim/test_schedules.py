"""The schedules against nanoGPT's function and against the shapes their names promise."""

import itertools
import math
from typing import Any

import pytest
from pydantic import TypeAdapter

from nanogpt.config.training import Schedule
from nanogpt.optim import lr_factor, stable_steps

PEAK = 1e-3
KINDS = ["constant", "cosine", "linear", "wsd"]


def schedule(**settings: Any) -> Any:
    return TypeAdapter(Schedule).validate_python(settings)


def nanogpt_rate(it: int, warmup: int, decay: int, low: float) -> float:
    """The schedule of nanoGPT's train.py, as its comments describe it."""
    if it < warmup:
        return PEAK * (it + 1) / (warmup + 1)
    if it > decay:
        return low
    ratio = (it - warmup) / (decay - warmup)
    return low + 0.5 * (1 + math.cos(math.pi * ratio)) * (PEAK - low)


@pytest.mark.parametrize(("warmup", "decay", "low"), [(100, 2000, 1e-4), (0, 50, 0.0), (10, 30, PEAK)])
def test_cosine_is_nanogpts(warmup: int, decay: int, low: float) -> None:
    cosine = schedule(kind="cosine", warmup_iters=warmup, decay_iters=decay, min_lr=low)
    for step in range(0, decay + 20, 3):
        expected = nanogpt_rate(step, warmup, decay, low)
        assert PEAK * lr_factor(cosine, step, 7, PEAK) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 10, 100, 150])
@pytest.mark.parametrize("horizon", [1, 2, 100])
def test_factors_rise_to_the_peak_and_never_rise_again(kind: str, warmup: int, horizon: int) -> None:
    settings = schedule(kind=kind, warmup_iters=warmup)
    factors = [lr_factor(settings, step, horizon, PEAK) for step in range(max(horizon, warmup) + 5)]
    assert all(0 <= factor <= 1 for factor in factors)
    rise, fall = factors[:warmup], factors[warmup:]
    assert all(left < right for left, right in itertools.pairwise(rise))
    assert all(left >= right for left, right in itertools.pairwise(fall))
    assert kind == "constant" or factors[-1] == 0.0


def test_linear_is_a_straight_line_to_zero_at_the_horizon() -> None:
    factors = [lr_factor(schedule(kind="linear", warmup_iters=20), step, 120, PEAK) for step in range(20, 121)]
    assert factors == pytest.approx([1 - index / 100 for index in range(101)], abs=1e-12)


def test_wsd_is_flat_and_then_straight() -> None:
    wsd = schedule(kind="wsd", warmup_iters=10, cooldown=0.25, min_lr=1e-4)
    assert stable_steps(wsd, 200) == 150
    assert [lr_factor(wsd, step, 200, PEAK) for step in range(10, 151)] == [1.0] * 141
    assert lr_factor(wsd, 175, 200, PEAK) == pytest.approx(0.55)
    assert lr_factor(wsd, 200, 200, PEAK) == pytest.approx(0.1)


def test_cooldowns_of_two_lengths_share_their_trunk() -> None:
    short, long = schedule(kind="wsd", warmup_iters=5, decay_iters=100), schedule(kind="wsd", warmup_iters=5)
    shared = min(stable_steps(short, 100), stable_steps(long, 400))
    assert shared == 80
    pairs = [(lr_factor(short, step, 100, PEAK), lr_factor(long, step, 400, PEAK)) for step in range(90)]
    assert all(left == right for left, right in pairs[: shared + 1])
    assert pairs[shared + 1][0] != pairs[shared + 1][1]


def test_min_lr_is_absolute_whatever_the_peak() -> None:
    cosine = schedule(kind="cosine", min_lr=1e-4)
    for peak in (1e-4, 1e-3, 1e-2):
        assert peak * lr_factor(cosine, 10, 10, peak) == pytest.approx(1e-4, rel=1e-12)
