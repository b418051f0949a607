"""Which parameters of a fit stand at an end of the box they are looked for in, and what that means, in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from experiments.analysis.laws import Array, Law, Parameter

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit
    from experiments.analysis.problem import Problem

End = Literal["lower", "upper"]
NEAR = 1e-6  # of a coordinate: nearer to its end than this is at it
NOTHING = 1e-6  # share of the lowest loss below which a term at the centre of the inputs is no term
VISIBLE = 1e-3  # share of the loss from which a term is worth a word
FLOOR_IS_ZERO = 1e-3  # a floor below this share of the lowest loss is not told from zero


def ends(problem: "Problem", theta: Array) -> dict[str, End]:
    """The parameters at an end of their box, and which end; a term of next to no size counts as at its lower one."""
    found: dict[str, End] = {}
    lowest = float(problem.ln_y.min())
    for i, quantity in enumerate(problem.law.quantities):
        value, share = float(theta[0, i]), _nothing(problem.law, quantity)
        if value <= problem.lower[i] + NEAR or (share and value <= lowest + np.log(share)):
            found[quantity.symbol] = "lower"
        elif value >= problem.upper[i] - NEAR:
            found[quantity.symbol] = "upper"
    return found


def free_parameters(problem: "Problem", theta: Array) -> npt.NDArray[np.bool_]:
    """(parameters,): neither at an end nor the exponent of a term that is."""
    at = ends(problem, theta)
    held = {name for name in problem.law.parameters if name in at or owner(problem.law, name, at) is not None}
    return np.array([name not in held for name in problem.law.parameters])


def owner(law: Law, symbol: str, at: Mapping[str, End]) -> str | None:
    """The vanished term whose exponent `symbol` is: it has no effect then. None where it has."""
    terms = [quantity for quantity in law.quantities if quantity.of_loss and symbol in _powers(quantity)]
    gone = [quantity.symbol for quantity in terms if at.get(quantity.symbol) == "lower"]
    return gone[0] if terms and len(gone) == len(terms) else None


def words(fit: "Fit", symbol: str) -> str | None:
    """What it means that a parameter is at an end of its box, or has lost its effect; None where neither is so."""
    at, quantity = fit.at_ends, next(q for q in fit.law.quantities if q.symbol == symbol)
    if symbol not in at:
        term = owner(fit.law, symbol, at)
        return (
            f"{symbol} is without effect: its term all but vanishes, as {term} is at its lower bound" if term else None
        )
    end, along = at[symbol], _along(fit.law, symbol)
    if symbol == fit.law.floor:
        told = ("lower bound 0: the data show no floor, the loss falls as fast as a law without one" if end == "lower"
                else f"upper bound {fit.params[symbol]:.3g}: the data show no end to it above")  # fmt: skip
    elif quantity.of_loss and quantity.scales:
        told = (f"lower bound: {_vanished(fit, quantity, along)}" if end == "lower"
                else f"upper bound {fit.params[symbol]:.3g}: its term outgrows the losses")  # fmt: skip
    elif symbol in fit.law.exponents:
        told = (f"lower bound {_round(fit.params[symbol])}: the data show no change of the loss along {along}"
                if end == "lower" else f"upper bound {fit.params[symbol]:.3g}: along {along} the loss changes in a "
                "step, as no power law does")  # fmt: skip
    else:
        told = f"{end} bound {fit.params[symbol]:.3g}: the data set no {'least' if end == 'lower' else 'largest'} value"
    return f"{symbol} is at its {told}"


def _vanished(fit: "Fit", quantity: Parameter, along: str) -> str:
    """Where a term next to nothing is so: its bound is at the middle of the runs, and its own unit, an input of 1, may
    make the coefficient as large as one likes. A steep term can still show at an end."""
    middle = "its term is next to nothing at the middle of the runs"
    powers = [(column, fit.params[power] if isinstance(power, str) else power) for column, power in quantity.scales]
    if not all(column in fit.points for column, _ in powers):
        return middle
    ln_term = np.log(fit.params[quantity.symbol]) - sum(
        power * np.log(fit.points[column].to_numpy(dtype=float)) for column, power in powers
    )
    most = float(np.exp(np.max(ln_term - np.log(fit.points["predicted"].to_numpy(dtype=float)))))
    if most < VISIBLE:
        return f"{middle} and everywhere else: the data show no effect of {along}"
    return f"{middle}, and is up to {100 * most:.2g} % of the loss at an end of {along}"


def _nothing(law: Law, quantity: Parameter) -> float:
    """The share of the lowest loss below which this parameter is zero; 0 for one that is no part of the loss."""
    if quantity.symbol == law.floor:
        return FLOOR_IS_ZERO
    return NOTHING if quantity.of_loss and quantity.scales else 0.0


def _powers(quantity: Parameter) -> set[str]:
    return {power for _, power in quantity.scales if isinstance(power, str)}


def _along(law: Law, symbol: str) -> str:
    """The inputs that a coefficient or an exponent speaks of."""
    owners = [q for q in law.quantities if q.symbol == symbol or symbol in _powers(q)]
    pairs = [column for q in owners for column, power in q.scales if q.symbol == symbol or power == symbol]
    return " and ".join(dict.fromkeys(pairs)) or " and ".join(law.columns)


def _round(value: float) -> str:
    return "0" if abs(value) < NEAR else f"{value:.3g}"
