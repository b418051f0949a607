"""Approach 2: at each compute budget the size of lowest loss, and how it grows with the budget.

Two ways to find the lowest point of a slice: a parabola over ln N (Hoffmann et al. 2022, arXiv 2203.15556, section
3.2), and Akima's interpolant on a fine grid, over tables disturbed by the noise of a loss (Porian et al. 2024, arXiv
2406.19146). The parabola is exact only where alpha = beta: otherwise even noise-free data bend its optima away, by more
the wider the slice (arXiv 2603.22339). A lowest point at the edge of a budget's sizes is refused, not reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from experiments.analysis.laws import Array
from experiments.analysis.observations import Observations
from experiments.analysis.parabola import FLAT
from experiments.analysis.powerline import PowerLine, fit_line, percentiles
from experiments.analysis.slices import Noise, Slice, is_measured, noise_draws, noise_of, slices
from nanogpt.config import UserError

Method = Literal["parabola", "akima"]
METHODS = ("parabola", "akima")
PER_GAP = 25  # grid points of Akima's interpolant per gap between sizes
LEAST_BUDGETS = 3  # through two optima there is always a line
WINDOW = 7  # sizes nearest to the lowest loss that a parabola is fitted to
LEAST_SD = 0.33  # of a gap between sizes: no optimum is known better than that when the line is weighted
Whole = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class IsoFlops:
    """`table`: a row per budget: flops, sizes (how many), n, d, loss, tokens_per_param, their bounds n_lower, n_upper,
    d_lower, d_upper (95 %), inside (share of disturbed slices with an inner minimum), refused ("" or the reason).

    `n_line`, `d_line`: through the optima that stand, D from minima over ln D of its own. `measured`: the budgets are
    those the runs were trained at, not read between runs.
    """

    method: Method
    observations: Observations
    slices: tuple[Slice, ...]
    table: pd.DataFrame
    n_line: PowerLine
    d_line: PowerLine
    noise: Noise
    measured: bool
    window: int | None

    @property
    def unused(self) -> int:
        """Points that no slice holds: too few sizes were trained at their compute."""
        return len(self.observations.table) - sum(len(part.n) for part in self.slices) if self.measured else 0

    def curve(self, index: int, points: int = 200) -> tuple[Array, Array]:
        """N and loss along what was drawn through a slice: Akima's interpolant, or the parabola over its window."""
        part = self.slices[index]
        ln_x = np.log(part.n)
        if self.method == "akima":
            grid = np.linspace(ln_x[0], ln_x[-1], points)
            return np.exp(grid), np.exp(Akima1DInterpolator(ln_x, np.log(part.loss))(grid))
        near = np.sort(_nearest(ln_x, np.array([part.loss.argmin()]), self.window)[0])
        middle = ln_x[near].mean()
        bent = np.polyfit(ln_x[near] - middle, part.loss[near], 2)
        grid = np.linspace(ln_x[near[0]], ln_x[near[-1]], points)
        return np.exp(grid), np.polyval(bent, grid - middle)


@dataclass(frozen=True, eq=False)
class _Minimum:
    """The lowest point of one slice along one axis, ln x, and of each draw (NaN: refused)."""

    ln_x: float
    ln_loss: float
    draws: Array
    refused: str
    gap: float

    @property
    def inside(self) -> float:
        return float(np.isfinite(self.draws).mean()) if len(self.draws) else 1.0

    @property
    def sd(self) -> float:
        return float(np.nanstd(self.draws)) if np.isfinite(self.draws).any() else 0.0

    @property
    def weight(self) -> float:
        """1 / variance, of at least a third of a gap, and less for a minimum that many draws lose."""
        return float((self.inside / max(self.sd, LEAST_SD * self.gap)) ** 2) if len(self.draws) else 1.0


def isoflop(
    observations: Observations,
    method: Method = "akima",
    *,
    budgets: Sequence[float] | int | None = None,
    noise: float | Callable[[Array], Array] | None = None,
    draws: int = 1000,
    window: int | None = WINDOW,
    seed: int = 0,
) -> IsoFlops:
    """The optima per budget and the power laws through them.

    `budgets`: FLOPs, or how many; default: those the runs were trained at, else 8 read between the runs of each size.
    `noise`: sd of a loss in nats, or a function of the loss; default as `slices.noise_of`. With draws, an optimum is
    the median over the disturbed slices; one that over half of them lose at an edge is refused. `window`: sizes nearest
    to the lowest loss that a parabola takes; None for all. Raises UserError where three budgets with an optimum are not
    left.
    """
    if method not in METHODS:
        raise UserError(f"approach 2: method {method!r} is not known; use one of {', '.join(METHODS)}")
    kept = noise_of(observations, noise)
    disturbed = noise_draws(observations.table, kept, draws, seed)
    parts = slices(observations, budgets, disturbed)
    find = _parabola(window) if method == "parabola" else _akima
    over_n = [_minimum(np.log(part.n), part.loss, part.draws, find) for part in parts]
    over_d = [_minimum(np.log(part.d[::-1]), part.loss[::-1], part.draws[:, ::-1], find) for part in parts]
    table = pd.DataFrame([_row(*row) for row in zip(parts, over_n, over_d, strict=True)])
    stand = np.flatnonzero(table["refused"] == "")
    if len(stand) < LEAST_BUDGETS:
        reasons = table.loc[table["refused"] != "", "refused"].str.replace(r" \(\d+%.*", "", regex=True).value_counts()
        said = "; ".join(f"{number}: {reason}" for reason, number in reasons.items())
        raise UserError(f"approach 2 ({method}): {len(stand)} of {len(table)} budgets have an optimum inside their "
                        f"range of sizes, and a power law needs {LEAST_BUDGETS} ({said})")  # fmt: skip
    lines = [_line(table["flops"].to_numpy()[stand], [each[i] for i in stand]) for each in (over_n, over_d)]
    return IsoFlops(
        method, observations, tuple(parts), table, lines[0], lines[1], kept, is_measured(observations, budgets), window
    )


Finder = Callable[[Array, Array], tuple[Array, Array, Whole]]
_REASONS = {
    1: "the lowest loss lies at the lower edge of its sizes",
    2: "the lowest loss lies at the upper edge of its sizes",
    3: "the losses around the lowest one do not curve upwards",
    4: "the fitted minimum lies outside the sizes it was fitted to",
    5: "the loss is flat: it is the same at every one of its sizes",
}


def _minimum(ln_x: Array, loss: Array, draws: Array, find: Finder) -> _Minimum:
    (place,), (level,), (why,) = find(ln_x, loss[None])
    why = 5 if np.ptp(loss) <= FLAT * loss.max() else why
    found, levels, refused = find(ln_x, draws) if len(draws) else (np.zeros(0), np.zeros(0), np.zeros(0, dtype=int))
    found = np.where(refused == 0, found, np.nan)
    reason = _REASONS.get(int(why), "")
    inside = float((refused == 0).mean()) if len(draws) else 1.0
    if not reason and inside < 0.5:
        reason = f"the noise alone moves the lowest loss to an edge of its sizes ({1 - inside:.0%} of the draws)"
    if not reason and len(draws):
        place, level = np.nanmedian(found), np.median(levels[refused == 0])
    return _Minimum(float(place), float(level), found, reason, float(np.diff(ln_x).mean()))


def _akima(ln_x: Array, losses: Array) -> tuple[Array, Array, Whole]:
    """Lowest point of Akima's interpolant of ln L on a grid of 25 points per gap: ln x, ln loss, reason (0: none)."""
    grid = np.linspace(ln_x[0], ln_x[-1], PER_GAP * (len(ln_x) - 1))
    read = Akima1DInterpolator(ln_x, np.log(losses).T)(grid)
    at = read.argmin(axis=0)
    reason = np.where(at == 0, 1, np.where(at == len(grid) - 1, 2, 0))
    return grid[at], read.min(axis=0), reason


def _parabola(window: int | None) -> Finder:
    """Vertex of the least-squares parabola of L over ln x through the `window` sizes nearest to the lowest loss."""

    def find(ln_x: Array, losses: Array) -> tuple[Array, Array, Whole]:
        best = losses.argmin(axis=1)
        each, which = np.unique(best, return_inverse=True)  # one window, and one pseudo-inverse, per lowest size
        near = _nearest(ln_x, each, window)
        x, y = ln_x[near], np.take_along_axis(losses, near[which], axis=1)
        middle, half = (x.max(1) + x.min(1)) / 2, (x.max(1) - x.min(1)) / 2
        t = (x - middle[:, None]) / half[:, None]
        powers = np.stack([np.ones_like(t), t, t**2], axis=2)
        level, slope, bend = np.einsum("dpk,dk->pd", np.linalg.pinv(powers)[which], y)
        upward = bend > 0
        vertex = -slope / (2 * np.where(upward, bend, 1.0))
        reason = np.select([best == 0, best == len(ln_x) - 1, ~upward, np.abs(vertex) > 1], [1, 2, 3, 4], 0)
        lowest = np.maximum(level - bend * vertex**2, np.finfo(float).tiny)
        return middle[which] + half[which] * vertex, np.log(lowest), reason

    return find


def _nearest(ln_x: Array, best: Whole, window: int | None) -> Whole:
    """Indices of the `window` values nearest to each best one: (draws, window)."""
    taken = len(ln_x) if window is None else min(window, len(ln_x))
    return np.argsort(np.abs(ln_x[None] - ln_x[best][:, None]), axis=1, kind="stable")[:, :taken]


def _row(part: Slice, n: _Minimum, d: _Minimum) -> dict[str, Any]:
    """One budget for the table; nothing is reported of a refused one but why."""
    refused = n.refused or d.refused.replace("sizes", "token counts")
    row: dict[str, Any] = {"flops": part.flops, "sizes": len(part.n)}
    if refused:
        blank = ("n", "n_lower", "n_upper", "d", "d_lower", "d_upper", "tokens_per_param", "loss")
        return row | dict.fromkeys(blank, float("nan")) | {"inside": n.inside, "refused": refused}
    n_low, n_high = np.exp(percentiles(n.draws, 0.95))
    d_low, d_high = np.exp(percentiles(d.draws, 0.95))
    return row | {
        "n": float(np.exp(n.ln_x)), "n_lower": n_low, "n_upper": n_high,
        "d": float(np.exp(d.ln_x)), "d_lower": d_low, "d_upper": d_high,
        "tokens_per_param": float(np.exp(d.ln_x - n.ln_x)), "loss": float(np.exp(n.ln_loss)),
        "inside": n.inside, "refused": "",
    }  # fmt: skip


def _line(flops: Array, minima: Sequence[_Minimum]) -> PowerLine:
    draws = np.exp(np.stack([each.draws for each in minima], axis=1))
    return fit_line(
        flops, np.exp([each.ln_x for each in minima]), np.array([each.weight for each in minima]),
        draws=(flops, draws),
    )  # fmt: skip
