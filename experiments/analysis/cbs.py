"""The critical batch size, twice: from the gradient's noise, and from what steps and tokens trade for at one loss.

McCandlish et al. 2018 (arXiv 1812.06162): to reach a loss with batches of B tokens takes S steps and E = S B tokens,
(S / S_min - 1) (E / E_min - 1) = 1, so S = S_min (1 + B_crit / B) with B_crit = E_min / S_min (eq. 2.11). The noise
scale B_simple = tr(Sigma) / |G|^2 (eq. 2.9) predicts it from gradients alone, as long as the curvature has no
direction that matters more than others. Both assume that every batch size trains at a learning rate that suits it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import f as fisher

from experiments.analysis import arguments
from experiments.analysis.columns import column
from experiments.analysis.parabola import Refusal
from experiments.analysis.statements import LEAST_BATCHES
from experiments.analysis.student import LEVEL, Array, Interval, fieller
from nanogpt.config import UserError

REACH = math.log(1e4)  # how far beyond the batches tried B_crit is looked for
POINTS = 4001
NEEDED = 2  # measurements behind a noise scale


@dataclass(frozen=True, eq=False)
class TradeOff:
    """Steps against tokens to one loss. `critical_batch`, `min_tokens` in tokens, `min_steps` in optimizer steps;
    Refusals where the runs do not hold them. `points`: a row per run (id, batch in tokens, steps, tokens)."""

    target: float
    level: float
    critical_batch: Interval | Refusal
    min_steps: float
    min_tokens: float
    points: pd.DataFrame
    notes: tuple[str, ...]

    def sentence(self) -> str:
        """The trade-off in words."""
        head = f"loss {self.target:.4f} in {len(self.points)} runs of {self.points['batch'].nunique()} batch sizes: "
        if isinstance(self.critical_batch, Refusal):
            return f"{head}no critical batch size: {self.critical_batch.reason}"
        return (f"{head}critical batch {self.critical_batch.text('{:,.0f}')} tokens "
                f"({100 * self.level:.0f} % interval); at least {self.min_steps:,.0f} steps "
                f"and {self.min_tokens:,.0f} tokens")  # fmt: skip


def trade_off(curves: pd.DataFrame, target: float | None = None, y: str = "val_loss", level: float = LEVEL) -> TradeOff:
    """B_crit from training curves (id, step, tokens, `y`) of runs that differ in their batch size.

    `target`: the loss that steps are counted to; default: the lowest one that every run reaches. Steps to it are read
    between evaluations, ln step over the loss. The interval is that of an F test on the profile of the squared
    residuals of ln S, so an end that the batches tried do not bound is infinite (or 0). Raises UserError for curves
    without these columns, without an evaluation after the first step, and for a target or a level that is no number.
    """
    place = "trade-off"
    level = arguments.level_of(level, place)
    curves = arguments.own_index(arguments.table_of(curves, place, "curves"))
    y = column(curves, y, place)
    known, notes = _evaluations(curves, y)
    lowest = known.groupby("id", sort=False)[y].min()
    target = float(lowest.max()) if target is None else _finite(target, "target")
    rows, decaying, never, at_once = [], 0, 0, 0
    for name, curve in known.groupby("id", sort=False):
        steps = _steps_to(curve, target, y)
        never, at_once = never + (steps == math.inf), at_once + (steps == 0.0)
        if not 0 < steps < math.inf:
            continue
        batch = float((curve["tokens"] / curve["step"]).median())
        rows.append({"id": name, "batch": batch, "steps": steps, "tokens": steps * batch})
        decaying += _is_decaying(curve, steps)
    points = pd.DataFrame(rows, columns=["id", "batch", "steps", "tokens"])
    notes += (f"{never} runs never reach it",) if never else ()
    notes += (f"{at_once} runs had reached it by their first evaluation",) if at_once else ()
    if decaying:
        notes += (f"in {decaying} runs the learning rate was falling by then, which is a part of the steps counted; a "
                  "constant schedule is free of it",)  # fmt: skip
    return _fit(points, target, level, notes)


def _evaluations(curves: pd.DataFrame, y: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The lines that hold an evaluation, and a note on those whose loss was not finite."""
    place = "trade-off"
    for name in ("id", "step", "tokens"):
        column(curves, name, place)
    numbers = curves[["step", "tokens", y]].apply(pd.to_numeric, errors="coerce").astype(float)
    table = curves.assign(**{name: numbers[name] for name in numbers})[numbers[y].notna() & (numbers["step"] > 0)]
    known = table[np.isfinite(table[y]) & (table["tokens"] > 0)]
    if not len(known):
        raise UserError(f"{place}: no curve has an evaluation of {y} after its first step")
    lost = len(table) - len(known)
    return known, (f"{lost} evaluations whose loss or tokens are not finite were passed over",) if lost else ()


def _finite(value: float, name: str) -> float:
    if not arguments.is_finite(value):
        raise UserError(f"trade-off: {name} must be a finite number, found {value!r}")
    return float(value)


def _steps_to(curve: pd.DataFrame, target: float, y: str) -> float:
    """The step at which the lowest loss so far passes the target, between two evaluations; infinite when it never does,
    0 when it had by the first evaluation, which does not say when."""
    ordered = curve.sort_values("step")
    losses = np.minimum.accumulate(ordered[y].to_numpy(dtype=float))
    steps = ordered["step"].to_numpy(dtype=float)
    after = int(np.argmax(losses <= target))
    if losses[after] > target:
        return math.inf
    if after == 0:
        return 0.0
    share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    return float(steps[after - 1] ** (1 - share) * steps[after] ** share)


def _is_decaying(curve: pd.DataFrame, step: float) -> bool:
    if "learning_rate" not in curve.columns or curve["learning_rate"].isna().all():
        return False
    rates = curve.dropna(subset=["learning_rate"]).sort_values("step")
    return bool(np.interp(step, rates["step"], rates["learning_rate"]) < 0.95 * rates["learning_rate"].max())


def _fit(points: pd.DataFrame, target: float, level: float, notes: tuple[str, ...]) -> TradeOff:
    """Least squares of ln S = ln S_min + ln(1 + B_crit / B), profiled over B_crit."""
    nan = float("nan")
    if points["batch"].nunique() < LEAST_BATCHES:
        found = points["batch"].nunique()
        reason = f"it takes {LEAST_BATCHES} batch sizes that reach the loss, found {found}"
        return TradeOff(target, level, Refusal(reason), nan, nan, points, notes)
    ln_b, ln_s = np.log(points["batch"].to_numpy(dtype=float)), np.log(points["steps"].to_numpy(dtype=float))
    grid = np.linspace(ln_b.min() - REACH, ln_b.max() + REACH, POINTS)

    def rest(ln_c: float) -> float:
        return float(_profile(np.array([ln_c]), ln_b, ln_s)[0][0])

    ln_c = _lowest(grid, _profile(grid, ln_b, ln_s)[0], rest)
    df = len(points) - 2
    limit = rest(ln_c) * (1 + fisher.ppf(level, 1, df) / df)
    ends = _ends(grid, _profile(grid, ln_b, ln_s)[0] <= limit, ln_c, lambda at: rest(at) - limit)
    value, min_steps = float(np.exp(ln_c)), float(np.exp(_profile(np.array([ln_c]), ln_b, ln_s)[1][0]))
    interval: Interval | Refusal = Interval(value, float(np.exp(ends[0])), float(np.exp(ends[1])), level)
    open_below, open_above = np.isinf(ends)
    if open_below and open_above:
        interval = Refusal("steps and tokens do not show the trade-off: any batch size would do as the critical one")
    elif open_below or open_above:
        side = "above it, where more steps are no help" if open_below else "below it, where tokens are what counts"
        notes += (f"the batches tried lie {side}, so one end of the interval is open",)
    return TradeOff(target, level, interval, min_steps, min_steps * value, points, notes)


def _lowest(grid: Array, rest_on_grid: Array, rest: Callable[[float], float]) -> float:
    """Where the profile is lowest, refined between the neighbours of the grid's lowest point."""
    best = int(np.argmin(rest_on_grid))
    if best in (0, len(grid) - 1):
        return float(grid[best])
    found = minimize_scalar(rest, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-10})
    return float(found.x)


def _ends(grid: Array, inside: Array, best: float, above: Callable[[float], float]) -> tuple[float, float]:
    """The outermost crossings of the limit on either side of the best, infinite where the grid ends before.

    The grid may have no point inside: curves free of noise leave an interval far narrower than its steps.
    """
    within = grid[inside]
    first, last = (min(within[0], best), max(within[-1], best)) if len(within) else (best, best)
    lower, upper = -math.inf, math.inf
    if not inside[0]:
        lower = float(brentq(above, grid[grid < first][-1], first)) if above(first) < 0 else float(first)
    if not inside[-1]:
        upper = float(brentq(above, last, grid[grid > last][0])) if above(last) < 0 else float(last)
    return lower, upper


def _profile(grid: Array, ln_b: Array, ln_s: Array) -> tuple[Array, Array]:
    """Sum of squares and best ln S_min for each ln B_crit of the grid."""
    rest = ln_s - np.logaddexp(0.0, grid[:, None] - ln_b)
    intercept = rest.mean(axis=1)
    return ((rest - intercept[:, None]) ** 2).sum(axis=1), intercept


@dataclass(frozen=True, eq=False)
class NoiseScales:
    """The gradient noise scale of every run that measured it. `runs`: id, batch (tokens), noise_scale, lower, upper,
    measurements, loss (mean training loss where it was measured)."""

    level: float
    share: tuple[float, float]
    runs: pd.DataFrame

    def sentence(self) -> str:
        """The range over runs, in words."""
        low, high = self.runs["noise_scale"].min(), self.runs["noise_scale"].max()
        ends = f"[{self.runs['lower'].min():,.0f}, {self.runs['upper'].max():,.0f}]"
        of = f"{len(self.runs)} run{'s' * (len(self.runs) != 1)}"
        part = f"measured between {self.share[0]:.0%} and {self.share[1]:.0%} of the training"
        open_ends = int(np.isinf(self.runs["upper"]).sum())
        why = f"; in {open_ends} of them" if len(self.runs) > 1 else ";"
        why = f"{why} the gradient is not told from zero, so there is no upper end" if open_ends else ""
        if len(self.runs) == 1:
            number = int(self.runs["measurements"].iloc[0])
            return (f"gradient noise scale of {of}: {low:,.0f} {ends} tokens ({100 * self.level:.0f} % interval over "
                    f"{number} steps, {part}{why})")  # fmt: skip
        return (f"gradient noise scale of {of}: from {low:,.0f} to {high:,.0f} tokens, {100 * self.level:.0f} % "
                f"intervals within {ends} ({part}{why})")  # fmt: skip


def noise_scales(
    curves: pd.DataFrame, share: tuple[float, float] = (0.5, 1.0), level: float = LEVEL
) -> NoiseScales | None:
    """tr(Sigma) / |G|^2 in tokens, of each run with `runtime.noise_scale_interval`, over a part of its training.

    The two estimates are averaged over the measured steps before they are divided, with Fieller's interval: steps use
    batches of their own, so their errors are independent. The scale grows as the loss falls, so `share` matters: this
    is its mean there. None when no run measured it twice there. Raises UserError for curves without their columns and a
    share or a level that is none.
    """
    place = "noise scales"
    curves = arguments.own_index(arguments.table_of(curves, place, "curves"))
    level, share = arguments.level_of(level, place), _check_share(share)
    if "gradient_square" not in curves.columns:
        return None
    for needed in ("id", "step", "tokens", "gradient_variance", "train_loss"):
        column(curves, needed, place)
    rows = []
    for name, curve in curves.groupby("id", sort=False):
        last = curve["step"].max()
        part = curve[curve["step"].between(share[0] * last, share[1] * last)]
        part = part.dropna(subset=["gradient_square", "gradient_variance"])
        if len(part) < NEEDED:
            continue
        found = fieller(part["gradient_variance"].to_numpy(float), part["gradient_square"].to_numpy(float), level)
        rows.append({"id": name, "batch": float((part["tokens"] / part["step"]).median()), "noise_scale": found.value,
                     "lower": found.lower, "upper": found.upper, "measurements": len(part),
                     "loss": float(part["train_loss"].mean())})  # fmt: skip
    return NoiseScales(level, share, pd.DataFrame(rows)) if rows else None


def _check_share(share: tuple[float, float]) -> tuple[float, float]:
    ends = tuple(share) if isinstance(share, tuple | list) else ()
    if len(ends) != 2 or not all(map(arguments.is_finite, ends)) or not 0 <= ends[0] < ends[1] <= 1:
        raise UserError("noise scales: share must be the two ends of a part of the training, such as (0.5, 1.0), "
                        f"found {share!r}")  # fmt: skip
    return float(ends[0]), float(ends[1])


def noise_scale_curve(curves: pd.DataFrame, windows: int = 8, level: float = LEVEL) -> pd.DataFrame:
    """How the noise scale grows while training: the columns of `noise_scales` and `tokens_seen`, per run and window."""
    parts = []
    for index in range(arguments.whole(windows, "noise scales", "windows", 1)):
        found = noise_scales(curves, (index / windows, (index + 1) / windows), level)
        if found is not None:
            total = curves.groupby("id", sort=False)["tokens"].max().rename("tokens_seen")
            parts.append(found.runs.join(total * (index + 0.5) / windows, on="id"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
