"""The critical batch size, twice: from the gradient's noise, and from what steps and tokens trade for at one loss.

McCandlish et al. 2018 (arXiv 1812.06162): to reach a loss with batches of B tokens takes S steps and E = S B tokens,
(S / S_min - 1) (E / E_min - 1) = 1, so S = S_min (1 + B_crit / B) with B_crit = E_min / S_min (eq. 2.11). The noise
scale B_simple = tr(Sigma) / |G|^2 (eq. 2.9) predicts it from gradients alone, as long as the curvature has no
direction that matters more than others. Both assume that every batch size trains at a learning rate that suits it.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import f as fisher

from experiments.analysis.parabola import Refusal
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
    without these columns.
    """
    missing = [name for name in ("id", "step", "tokens", y) if name not in curves.columns]
    if missing:
        raise UserError(f"trade-off: the curves have no column {missing[0]!r}")
    known = curves.dropna(subset=[y])
    if not len(known):
        raise UserError(f"trade-off: no curve has an evaluation of {y}")
    lowest = known.groupby("id", sort=False)[y].min()
    target = float(lowest.max()) if target is None else float(target)
    rows, decaying = [], 0
    for name, curve in known.groupby("id", sort=False):
        steps = _steps_to(curve, target, y)
        if steps is None:
            continue
        batch = float((curve["tokens"] / curve["step"]).median())
        rows.append({"id": name, "batch": batch, "steps": steps, "tokens": steps * batch})
        decaying += _is_decaying(curve, steps)
    points = pd.DataFrame(rows, columns=["id", "batch", "steps", "tokens"])
    left = len(lowest) - len(points)
    notes: tuple[str, ...] = (f"{left} runs never reach it",) if left else ()
    if decaying:
        notes += (f"in {decaying} runs the learning rate was falling by then, which is a part of the steps counted; a "
                  "constant schedule is free of it",)  # fmt: skip
    return _fit(points, target, level, notes)


def _steps_to(curve: pd.DataFrame, target: float, y: str) -> float | None:
    """The step at which the lowest loss so far passes the target, between two evaluations; None when it never does or
    had passed it at the first."""
    ordered = curve.sort_values("step")
    losses = np.minimum.accumulate(ordered[y].to_numpy(dtype=float))
    steps = ordered["step"].to_numpy(dtype=float)
    after = int(np.argmax(losses <= target))
    if losses[after] > target or after == 0:
        return None
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
    if points["batch"].nunique() < 3 or len(points) < 3:
        found = points["batch"].nunique()
        return TradeOff(target, level, Refusal(f"it takes 3 batch sizes that reach the loss, found {found}"), nan, nan,
                        points, notes)  # fmt: skip
    ln_b, ln_s = np.log(points["batch"].to_numpy(dtype=float)), np.log(points["steps"].to_numpy(dtype=float))
    grid = np.linspace(ln_b.min() - REACH, ln_b.max() + REACH, POINTS)
    rest, intercept = _profile(grid, ln_b, ln_s)
    best = int(np.argmin(rest))
    if 0 < best < POINTS - 1:  # refined, so that noise-free curves give it back to many digits
        fine = np.linspace(grid[best - 1], grid[best + 1], POINTS)
        fine_rest, fine_intercept = _profile(fine, ln_b, ln_s)
        at = int(np.argmin(fine_rest))
        ln_c, low_rest, ln_min = fine[at], fine_rest[at], fine_intercept[at]
    else:
        ln_c, low_rest, ln_min = grid[best], rest[best], intercept[best]
    df = len(points) - 2
    inside = rest <= low_rest * (1 + fisher.ppf(level, 1, df) / df)
    lower = 0.0 if inside[0] else float(np.exp(grid[np.argmax(inside)]))
    upper = math.inf if inside[-1] else float(np.exp(grid[POINTS - 1 - np.argmax(inside[::-1])]))
    value, min_steps = float(np.exp(ln_c)), float(np.exp(ln_min))
    interval: Interval | Refusal = Interval(value, min(lower, value), max(upper, value), level)
    if inside[0] and inside[-1]:
        interval = Refusal("steps and tokens do not show the trade-off: any batch size would do as the critical one")
    elif inside[0] or inside[-1]:
        side = "above it, where more steps are no help" if inside[0] else "below it, where tokens are what counts"
        notes += (f"the batches tried lie {side}, so one end of the interval is open",)
    return TradeOff(target, level, interval, min_steps, min_steps * value, points, notes)


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
        between = f"{low:,.0f}" if len(self.runs) == 1 else f"from {low:,.0f} to {high:,.0f}"
        of = f"{len(self.runs)} run{'s' * (len(self.runs) != 1)}"
        part = f"measured between {self.share[0]:.0%} and {self.share[1]:.0%} of the training"
        return f"gradient noise scale of {of}: {between} tokens ({part})"


def noise_scales(
    curves: pd.DataFrame, share: tuple[float, float] = (0.5, 1.0), level: float = LEVEL
) -> NoiseScales | None:
    """tr(Sigma) / |G|^2 in tokens, of each run with `runtime.noise_scale_interval`, over a part of its training.

    The two estimates are averaged over the measured steps before they are divided, with Fieller's interval: steps use
    batches of their own, so their errors are independent. The scale grows as the loss falls, so `share` matters: this
    is its mean there. None when no run measured it.
    """
    if "gradient_square" not in curves.columns:
        return None
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


def noise_scale_curve(curves: pd.DataFrame, windows: int = 8, level: float = LEVEL) -> pd.DataFrame:
    """How the noise scale grows while training: the columns of `noise_scales` and `tokens_seen`, per run and window."""
    parts = []
    for index in range(windows):
        found = noise_scales(curves, (index / windows, (index + 1) / windows), level)
        if found is not None:
            total = curves.groupby("id", sort=False)["tokens"].max().rename("tokens_seen")
            parts.append(found.runs.join(total * (index + 0.5) / windows, on="id"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
