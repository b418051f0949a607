"""One basin of losses over log2 x: the minimum of a parabola near the lowest value, or the reason why there is none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

Array = NDArray[np.floating[Any]]
FLAT = 1e-12  # losses that differ by less, relatively, differ by rounding


@dataclass(frozen=True)
class Vertex:
    """The minimum of a basin: log2 of where it lies, the loss there, and the parabola's second coefficient
    (loss per octave squared). `first` and `last` are the indices of the outermost values fitted."""

    log2_x: float
    loss: float
    curvature: float
    first: int
    last: int


@dataclass(frozen=True)
class Refusal:
    """Why a number is not given, in words that go on a sentence."""

    reason: str


def find_vertex(log2_x: Array, losses: Array, window: int) -> Vertex | Refusal:
    """Least-squares parabola through the losses within `window` grid steps of the lowest one.

    `log2_x` is sorted; a loss that is not finite is a value that was tried and cannot be used. A lowest loss with
    nothing usable on one side, or a parabola whose minimum is not among the values it was fitted to, is refused.
    """
    known = np.flatnonzero(np.isfinite(losses))
    if len(known) < 3:
        return Refusal(f"only {len(known)} of {len(losses)} values tried can be used, and a parabola needs 3")
    if np.ptp(losses[known]) <= FLAT * np.abs(losses[known]).max():
        return Refusal("the loss is flat: it is the same at every value tried, so none is best")
    best = int(known[np.argmin(losses[known])])
    if best in (known[0], known[-1]):
        return Refusal(_edge(best, known, len(losses)))
    near = known[np.abs(known - best) <= window]
    if near[0] == best or near[-1] == best:
        return Refusal("next to the lowest loss lie values that cannot be used, so nothing brackets it")
    # Centred on the lowest value, so that the coefficients keep all their digits.
    steps = log2_x[near] - log2_x[best]
    curvature, slope, level = np.polyfit(steps, losses[near], 2)
    if not curvature > 0:
        return Refusal("the losses around the lowest one do not curve upwards")
    lowest = -slope / (2 * curvature)
    if not steps[0] <= lowest <= steps[-1]:
        return Refusal("the fitted minimum lies outside the values it was fitted to")
    loss = float(level - curvature * lowest**2)
    return Vertex(float(log2_x[best] + lowest), loss, float(curvature), int(near[0]), int(near[-1]))


def _edge(best: int, known: NDArray[np.intp], tried: int) -> str:
    side = "lower" if best == known[0] else "upper"
    if best in (0, tried - 1):
        return f"the lowest loss lies at the {side} edge of the values tried"
    return f"the lowest loss lies at the {side} edge of the values that every seed finished"


def read_loss(log2_x: Array, losses: Array, at: float) -> float | Refusal:
    """The loss at a place between the values tried: Akima's piecewise cubic (J. ACM 17(4), 1970) over log2 x.

    It goes through every loss, is exact for a parabola on an even grid, and is local: a wall of high losses far away
    does not ripple through the basin. Outside the usable values, and across a gap in them, it is refused.
    """
    known = np.flatnonzero(np.isfinite(losses))
    # A place found by a fit may miss the value it stands for by a rounding error.
    nearest = int(known[np.argmin(np.abs(log2_x[known] - at))])
    if abs(log2_x[nearest] - at) < 1e-9:
        return float(losses[nearest])
    right = int(np.searchsorted(log2_x, at))
    if right == 0 or right == len(log2_x) or not np.isfinite(losses[right - 1 : right + 1]).all():
        return Refusal("it lies outside the values that can be used")
    return float(Akima1DInterpolator(log2_x[known], losses[known])(at))
