"""Where a pruner looks: the evaluations of a run at or after given fractions of its horizon."""

import math
from typing import TYPE_CHECKING

from experiments.search.spec import Pruner

if TYPE_CHECKING:
    from experiments.lock import LockedRun


def rung_steps(pruner: Pruner, run: "LockedRun") -> list[int]:
    """The optimizer step of each rung of a run: its first evaluation at or after the fraction of its horizon."""
    if pruner.kind == "none":
        return []
    interval = run.config["train"].get("eval_interval") or run.steps
    return [math.ceil(fraction * run.steps / interval - 1e-9) * interval for fraction in pruner.at]


def rung_problem(pruner: Pruner, run: "LockedRun") -> str | None:
    """In one line why a run cannot be judged at the pruner's rungs; None when it can."""
    steps = rung_steps(pruner, run)
    interval = run.config["train"].get("eval_interval")
    for index, (fraction, step) in enumerate(zip(pruner.at, steps, strict=False)):
        wanted = f"sweep.pruner.at: {fraction:g} of {run.steps} steps"
        if step >= run.steps:
            return f"{wanted}: no evaluation before the end with train.eval_interval {interval or 'null'}"
        if step in steps[:index]:
            return f"{wanted}: the same evaluation as the rung before, with train.eval_interval {interval}"
    return None
