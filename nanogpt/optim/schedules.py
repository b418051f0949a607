"""Learning-rate schedules, as pure functions of the step; one line in SHAPES per kind of decay.

Conventions are nanoGPT's: steps count from 0, step i of the warm-up has (i + 1) / (warmup_iters + 1) of the peak, and
from decay_iters on the rate is min_lr.
"""

import math
from collections.abc import Callable

from nanogpt.config.training import WSD, Constant, Schedule


def lr_factor(schedule: Schedule, step: int, horizon: int, peak_lr: float) -> float:
    """The learning rate at `step` as a share of its peak, in [0, 1], for a run of `horizon` steps.

    A share and not a rate: each parameter group multiplies it by its own peak, so that a schedule cannot flatten the
    parametrization's multipliers. `min_lr` is absolute in the config and becomes a share of `peak_lr` here.
    """
    if step < schedule.warmup_iters:
        return (step + 1) / (schedule.warmup_iters + 1)
    if isinstance(schedule, Constant):
        return 1.0
    end = schedule.decay_iters or horizon
    floor = schedule.min_lr / peak_lr
    if step >= end:
        return floor
    start = stable_steps(schedule, horizon) if isinstance(schedule, WSD) else schedule.warmup_iters
    progress = (step - start) / (end - start) if step > start else 0.0
    return floor + SHAPES[schedule.kind](progress) * (1.0 - floor)


def stable_steps(schedule: WSD, horizon: int) -> int:
    """Steps before the cool-down begins."""
    return schedule.stable_steps(horizon)


# What is left of the way from peak to floor, as a function of the share of the decay that is over.
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "wsd": lambda progress: 1.0 - progress,
}
