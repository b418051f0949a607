"""What to know before quoting a fit, in words: which parameters the data identify, and what to distrust."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit
    from experiments.analysis.laws import Law

FLOOR_IS_ZERO = 1e-3  # a floor below this share of the lowest loss is not told from zero
COLLINEAR = 1e9  # condition number of J'J from which the inputs move together as far as the fit can tell
HIGHEST_EXPONENT = 8.0  # the end of the box that exponents are looked for in
SPAN = 10.0  # an interval over more than this factor does not identify a parameter
FLOOR_SPAN = 2.0  # and a floor not over more than this one


def notes(fit: "Fit") -> tuple[str, ...]:
    """Warnings in words, most important first."""
    found: list[str] = []
    if not fit.converged:
        found.append(f"the optimiser did not converge ({fit.reason}): do not use these numbers")
    if fit.draws_converged < 0.95:
        found.append(f"only {fit.draws_converged:.0%} of the bootstrap resamples converged: distrust the intervals")
    if fit.condition > COLLINEAR and len(fit.law.columns) > 1:
        inputs = " and ".join(fit.law.columns)
        found.append(f"condition number {fit.condition:.1e}: {inputs} hardly move apart in these runs, "
                     "so single parameters are not identified even where predictions are")  # fmt: skip
    found += [note for note in (unidentified(fit, name) for name in fit.params) if note]
    return tuple(found)


def identified(fit: "Fit") -> dict[str, bool]:
    """Whether the data identify each parameter; by its profile where there are no draws."""
    return {name: unidentified(fit, name, always=True) is None for name in fit.params}


def unidentified(fit: "Fit", name: str, always: bool = False) -> str | None:
    """Why a parameter is not identified, or None: it sits at a bound, or its interval says next to nothing.

    Without intervals only a bound is seen, unless `always` asks for the profile.
    """
    value, lowest = fit.params[name], float(fit.points[fit.y].min())
    if name == fit.law.floor and value < FLOOR_IS_ZERO * lowest:
        return f"{name} sits at its bound 0: these runs show no floor, the loss falls as fast as a pure power law"
    if name in fit.law.exponents and not 1e-6 <= value <= HIGHEST_EXPONENT - 1e-6:
        return f"{name} sits at its bound {value:.3g}: the loss does not follow this law along that input"
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
