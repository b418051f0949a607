"""The compute multiplier of a variant at each of its levels, beside the one of all levels together.

At a level of compute C the multiplier is ((L_baseline - E) / (L - E))^(1/alpha), with the floor and the exponent of the
curve that both variants share (compare.py). Where the baseline has no run at C, its loss is read from that curve.
"""

from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column
from experiments.analysis.compare import Comparison, compare, fit_common_curve, outcome_of
from experiments.analysis.ladder import Ladder, make_ladder
from experiments.analysis.student import LEVEL, Array, Interval, seed_spread
from experiments.analysis.where import select

STEP = 1e-5  # of the derivatives, relative: ln m is smooth in the losses and the curve


def by_level(
    runs: pd.DataFrame, factor: str, baseline: Any, candidate: Any, x: str = "flops", y: str = "val_loss",
    where: str | None = None, level: float = LEVEL,
) -> tuple[Comparison, pd.DataFrame]:  # fmt: skip
    """The comparison, and a row per level of the candidate: x, setting, multiplier, lower, upper, outcome.

    The intervals are Student's over what each seed adds to ln m, through its own loss and through the common curve;
    NaN with one seed, whose outcome is empty. A level at or below the fitted floor has no multiplier (NaN). Without a
    common curve the table is empty. UserError as `compare`.
    """
    found = compare(runs, factor, baseline, candidate, x, y, where, arguments.level_of(level, "compare"))
    if not isinstance(found.multiplier, Interval):
        return found, pd.DataFrame(columns=["x", "setting", "multiplier", "lower", "upper", "outcome"])
    runs = arguments.own_index(arguments.table_of(runs, "compare"))
    rows = runs[select(runs, where, "compare.where")] if where else runs
    names = (column(runs, factor, "compare"), column(runs, x, "compare"), column(runs, y, "compare"))
    one, two = (make_ladder(rows, names[0], each, names[1], names[2]) for each in (baseline, candidate))
    values, weights = _local(one, two)
    parts = [np.log(each.losses) - np.log(each.losses).mean(axis=1, keepdims=True) for each in (one, two)]
    moves = [_moves(parts, each) for each in weights]
    table = [_row(two, i, values[i], moves[i], one.seeds == two.seeds, level) for i in range(len(two.x))]
    return found, pd.DataFrame(table)


def _local(one: Ladder, two: Ladder) -> tuple[Array, Array]:
    """ln m at every level of the candidate, and what each ln loss adds to it: (levels,), (levels, points)."""
    ln_y = np.concatenate([np.log(each.losses).mean(axis=1) for each in (one, two)])
    ln_x = np.log(np.concatenate([one.x, two.x]))
    is_two = np.repeat([0.0, 1.0], [len(one.x), len(two.x)])
    with_floor = min(len(one.x), len(two.x)) >= 3
    theta, jacobian = fit_common_curve(ln_x, ln_y, is_two, with_floor)
    centred = theta.copy()
    centred[1] -= theta[2] * ln_x.mean()  # the Jacobian is that of the centred curve
    free = np.linalg.norm(jacobian, axis=0) > 0
    matched = [one.level_of(float(x)) for x in two.x]

    def ln_m(curve: Array, losses: Array) -> Array:
        return _ln_multipliers(curve, losses, ln_x - ln_x.mean(), len(one.x), matched)

    weights = _derivative(lambda losses: ln_m(centred, losses), ln_y)
    through = _derivative(lambda curve: ln_m(curve, ln_y), centred)
    weights = weights + through[:, free] @ np.linalg.pinv(jacobian[:, free])
    return ln_m(centred, ln_y), weights


def _ln_multipliers(curve: Array, ln_y: Array, ln_x: Array, ones: int, matched: list[int | None]) -> Array:
    floor, ln_a, alpha, _ = curve
    theirs = np.log(np.maximum(np.exp(ln_y[ones:]) - floor, 0.0) + np.finfo(float).tiny)
    known = np.exp(ln_y[[0 if at is None else at for at in matched]]) - floor
    read = np.array([at is None for at in matched])
    base = np.where(read, ln_a - alpha * ln_x[ones:], np.log(np.maximum(known, np.finfo(float).tiny)))
    above = (np.exp(ln_y[ones:]) > floor) & (read | (known > 0))
    return np.where(above, (base - theirs) / alpha, np.nan)


def _derivative(function: Any, at: Array) -> Array:
    """Central differences: (values, arguments)."""
    columns = []
    for index in range(len(at)):
        step = np.zeros_like(at)
        step[index] = STEP * max(1.0, abs(at[index]))
        columns.append((function(at + step) - function(at - step)) / (2 * step[index]))
    return np.stack(columns, axis=1)


def _moves(parts: list[Array], weights: Array) -> list[Array]:
    """What every seed of each variant moves one ln m by."""
    return [part.T @ weight for part, weight in zip(parts, np.split(weights, [len(parts[0])]), strict=True)]


def _row(two: Ladder, i: int, value: float, moves: list[Array], paired: bool, level: float) -> dict[str, Any]:
    spread = seed_spread([moves[0] + moves[1]] if paired else moves) if np.isfinite(value) else None
    ends = Interval(value, np.nan, np.nan) if spread is None else spread.interval(value, level)
    lower, upper = np.exp([ends.lower, ends.upper])
    return {"x": two.x[i], "setting": two.settings[i], "multiplier": float(np.exp(value)), "lower": lower,
            "upper": upper, "outcome": outcome_of(lower, upper, 1.0) if np.isfinite(lower) else ""}  # fmt: skip
