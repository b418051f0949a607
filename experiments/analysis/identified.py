"""What to know before quoting a fit, in words: which parameters the data identify, and what to distrust."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.analysis import bounds
from experiments.analysis.bounds import FLOOR_IS_ZERO

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit
    from experiments.analysis.laws import Law

COLLINEAR = 1e9  # condition number of J'J from which the inputs move together as far as the fit can tell
TOGETHER = 0.02  # spread of the ln inputs across their main direction, relative to it, below which they move together
WEAK = 0.3  # share of the least-told direction from which a parameter is part of it
FEWEST_DRAWS = 39  # resamples whose extremes are the ends of a 95 % interval
SPAN = 10.0  # an interval over more than this factor does not identify a parameter
FLOOR_SPAN = 2.0  # and a floor not over more than this one


def notes(fit: "Fit") -> tuple[str, ...]:
    """Warnings in words, most important first."""
    found: list[str] = []
    if not fit.converged:
        found.append(f"the optimiser did not converge ({fit.reason}): do not use these numbers")
    if fit.draws_converged < 0.95:
        found.append(f"only {fit.draws_converged:.0%} of the bootstrap resamples converged: distrust the intervals")
    if fit.method == "bootstrap" and 0 < len(fit.draws) < FEWEST_DRAWS:
        found.append(f"{len(fit.draws)} resamples are too few for a 95 % interval, which comes out too narrow: "
                     f"{FEWEST_DRAWS} are the fewest")  # fmt: skip
    found += fit.warnings
    if fit.misfit is not None and fit.misfit.bends:
        found.append(fit.misfit.words)
    found += [note for note in (_why_collinear(fit),) if note]
    found += [note for note in (unidentified(fit, name) for name in fit.params) if note]
    return tuple(found)


def _why_collinear(fit: "Fit") -> str | None:
    """Whether the design is at fault, whose inputs move together, or the law, which asks more than these runs tell.

    The design is looked at whatever the condition number is: that leaves out parameters at their bounds, which is where
    a fit to such a design often ends.
    """
    if len(fit.law.columns) < 2:
        return None
    if together(fit):
        return (f"{' and '.join(fit.law.columns)} hardly move apart in these runs, so single parameters are not "
                "identified even where predictions are")  # fmt: skip
    if not fit.condition > COLLINEAR:
        return None
    free = bounds.free_parameters(fit.problem, fit.theta)
    weakest = np.linalg.svd(fit.problem.model.expand(fit.theta).jacobian[0][:, free])[2][-1]
    names = [name for name, open_ in zip(fit.law.parameters, free, strict=True) if open_]
    told = [name for name, share in zip(names, weakest, strict=True) if abs(share) > WEAK]
    return (f"condition number {fit.condition:.1e}: the inputs do move apart, but these runs do not tell "
            f"{' and '.join(told)} from one another, so they are not "
            "identified even where predictions are")  # fmt: skip


def together(fit: "Fit") -> bool:
    """Whether the ln inputs lie on a line as nearly as makes no difference; one that is constant is not looked at."""
    ln_x = np.log(fit.points[list(fit.law.columns)].to_numpy(dtype=float))
    ln_x = ln_x[:, np.ptp(ln_x, axis=0) > 0]
    if ln_x.shape[1] < 2:
        return False
    spread = np.linalg.svd((ln_x - ln_x.mean(axis=0)) / ln_x.std(axis=0), compute_uv=False)
    return bool(spread[-1] < TOGETHER * spread[0])


def identified(fit: "Fit") -> dict[str, bool]:
    """Whether the data identify each parameter; by its profile where there are no draws."""
    return {name: unidentified(fit, name, always=True) is None for name in fit.params}


def unidentified(fit: "Fit", name: str, always: bool = False) -> str | None:
    """Why a parameter is not identified, or None: it sits at a bound, or its interval says next to nothing.

    Without intervals only a bound is seen, unless `always` asks for the profile.
    """
    if (at_end := bounds.words(fit, name)) is not None:
        return at_end
    lowest = float(fit.points[fit.y].min())
    lower, upper = (float(end) for end in fit.conf_int(0.95).loc[name].to_numpy(dtype=float))
    if always and not lower <= upper and fit.on == "ln L":
        lower, upper = fit.profile(name).lower, fit.profile(name).upper
    return too_wide(fit.law, name, lower, upper, lowest)


def too_wide(law: "Law", name: str, lower: float, upper: float, lowest: float) -> str | None:
    """Why one 95 % interval does not identify a parameter; one of NaN is judged good. `lowest` is the lowest loss."""
    runs = f"its 95 % interval runs from {lower:.3g} to {upper:.3g}"
    if name == law.floor:
        if lower < FLOOR_IS_ZERO * lowest or upper > FLOOR_SPAN * lower:
            return f"{name} is not identified: " + (
                "its 95 % interval reaches down to 0" if lower < 0.01 * lowest else runs
            )
        return None
    if name in law.exponents:
        return f"{name} is not identified: {runs}" if lower < 1e-3 or upper > SPAN * lower else None
    if name in law.coefficients:
        why = f"{runs} (it is its term at an input of 1, far outside the data); predictions can still be good"
        return f"{name} is not identified on its own: {why}" if upper > SPAN * lower else None
    if lower > 0:
        return f"{name} is not identified: {runs}" if upper > SPAN * lower else None
    return f"{name} is not identified: {runs}" if upper - lower == float("inf") else None
