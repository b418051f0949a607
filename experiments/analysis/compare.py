"""Two variants side by side: what the better one saves in compute, with an interval, and win, tie or loss by it.

Both losses are taken as one curve, L = E + A (m C)^-alpha, with m = 1 for the baseline: a candidate of multiplier m
does at compute C what the baseline does at m C. It is the common-shape form of the "effective speed-up"
((L_worse - E) / (L_better - E))^(1/alpha) at equal compute, and needs no law fitted to each variant alone, whose
floors and exponents would be ill-conditioned.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from experiments.analysis import arguments
from experiments.analysis.columns import column
from experiments.analysis.fitted import Fit
from experiments.analysis.ladder import Ladder, make_ladder
from experiments.analysis.laws import PowerLaw, SaturatingPowerLaw
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import LEVEL, ROUNDING, Array, Interval, Spread, fitted_spread, seed_spread
from experiments.analysis.where import select
from nanogpt.config import UserError

Outcome = Literal["win", "tie", "loss"]
STARTS = (0.0, 0.5, 0.8, 0.95)  # the floor as a share of the lowest loss


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a candidate does against a baseline along `x`.

    `multiplier`: compute the baseline needs for the same loss, over the candidate's; above 1 the candidate is better.
    `gap`: the candidate's loss minus the baseline's at equal `x`, averaged over the levels both have. What the runs do
    not hold is a Refusal with the reason. `levels`: variant, x, mean loss and setting of every level used.
    """

    factor: str
    baseline: Any
    candidate: Any
    x: str
    y: str
    level: float
    paired: bool
    seeds: tuple[int, int]
    multiplier: Interval | Refusal
    gap: Interval | Refusal
    floor: float
    exponent: float
    levels: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def outcome(self) -> Outcome | None:
        """By the multiplier's interval, else by the gap's; never by a point. None where there is neither."""
        if isinstance(self.multiplier, Interval):
            return outcome_of(self.multiplier.lower, self.multiplier.upper, 1.0)
        return outcome_of(-self.gap.upper, -self.gap.lower, 0.0) if isinstance(self.gap, Interval) else None

    def sentence(self) -> str:
        """The comparison in words, with its interval."""
        seeds = f"{self.seeds[0]} paired seeds" if self.paired else f"{self.seeds[0]} and {self.seeds[1]} seeds"
        seeds = "one seed, error from the fit's residuals" if max(self.seeds) == 1 else seeds
        head = f"{self.candidate} against {self.baseline} ({100 * self.level:.0f} % intervals, {seeds}): "
        along = self.x.rpartition(".")[2]
        if isinstance(self.multiplier, Interval):
            head += f"multiplier of {along} {self.multiplier.text()}"
        else:
            head += f"no multiplier of {along}: {self.multiplier.reason}"
        gap = f"; loss {self.gap.text('{:+.4f}')} at equal {along}" if isinstance(self.gap, Interval) else ""
        return f"{head}{gap}: {self.outcome or 'not decided'}"


def outcome_of(lower: float, upper: float, neutral: float) -> Outcome:
    """Win above the neutral value, loss below it, tie where the interval holds it or ends within rounding of it."""
    return "win" if lower > neutral + ROUNDING else "loss" if upper < neutral - ROUNDING else "tie"


def compare(
    runs: pd.DataFrame,
    factor: str,
    baseline: Any,
    candidate: Any,
    x: str = "flops",
    y: str = "val_loss",
    where: str | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Compare two values of `factor` along `x`, each at its best setting of every level.

    Seeds are paired where both variants ran the same ones: what a seed does to both cancels. The interval is Student's
    over the seeds' influence on the fitted multiplier (linearised); with one seed, or where one common curve misses the
    means by more than noise, it comes from the residuals. Choosing the best setting on the same means flatters both
    variants alike and is not in the interval. Raises UserError for an unknown column, a variant without runs, one that
    is compared with itself, and a finished run of either whose `x` or `y` is no finite number above 0.
    """
    runs = arguments.own_index(arguments.table_of(runs, "compare"))
    level = arguments.level_of(level, "compare")
    factor = column(runs, factor, "compare")
    x, y = column(runs, x, "compare"), column(runs, y, "compare")
    if baseline == candidate:
        raise UserError(f"compare: {baseline!r} is compared with itself; name two values of {factor}")
    rows = runs[select(runs, where, "compare.where")] if where else runs
    one, two = (make_ladder(rows, factor, variant, x, y) for variant in (baseline, candidate))
    paired = one.seeds == two.seeds
    fitted = _multiplier(one, two, paired, level)
    gap = _gap(one, two, paired, level)
    levels = pd.concat([_levels(one), _levels(two)], ignore_index=True)
    notes = (*one.notes, *two.notes, *_unequal_search(one, two), *fitted.notes)
    seeds = (len(one.seeds), len(two.seeds))
    return Comparison(factor, baseline, candidate, x, y, level, paired and len(one.seeds) > 1, seeds,
                      fitted.multiplier, gap, fitted.floor, fitted.exponent, levels, notes)  # fmt: skip


def _unequal_search(one: Ladder, two: Ladder) -> tuple[str, ...]:
    """The best of more settings is better, by search and by luck, and no interval knows it."""
    per_level = [ladder.tried / len(ladder.x) for ladder in (one, two)]
    if max(per_level) <= 1.5 * min(per_level):
        return ()
    counts = " and ".join(f"{ladder.variant} the best of {ladder.tried} settings" for ladder in (one, two))
    return (f"{counts} over its levels: the one that was searched longer looks better for it",)


def _levels(ladder: Ladder) -> pd.DataFrame:
    means = ladder.losses.mean(axis=1)
    return pd.DataFrame({"variant": ladder.variant, "x": ladder.x, "loss": means, "setting": ladder.settings})


@dataclass(frozen=True)
class _Fitted:
    multiplier: Interval | Refusal
    floor: float = float("nan")
    exponent: float = float("nan")
    notes: tuple[str, ...] = ()


def _multiplier(one: Ladder, two: Ladder, paired: bool, level: float) -> _Fitted:
    if reason := _why_not(one, two):
        return _Fitted(Refusal(reason))
    ln_y = np.concatenate([np.log(one.losses).mean(axis=1), np.log(two.losses).mean(axis=1)])
    ln_x = np.log(np.concatenate([one.x, two.x]))
    is_two = np.repeat([0.0, 1.0], [len(one.x), len(two.x)])
    with_floor = min(len(one.x), len(two.x)) >= 3
    theta, jacobian = fit_common_curve(ln_x, ln_y, is_two, with_floor)
    notes: tuple[str, ...] = (
        () if with_floor else ("two levels each: no floor was fitted, so the multiplier holds between them only",)
    )
    if theta[2] < 1e-3:
        return _Fitted(Refusal("the loss does not fall along it"), theta[0], theta[2])
    free = np.linalg.norm(jacobian, axis=0) > 0
    weights = np.linalg.pinv(jacobian[:, free])[-1]  # what each ln loss adds to ln m
    predicted = _curve(theta, ln_x, is_two)
    residual_sum, df = float(((ln_y - predicted) ** 2).sum()), len(ln_y) - int(free.sum())
    parts = [np.log(ladder.losses) - np.log(ladder.losses).mean(axis=1, keepdims=True) for ladder in (one, two)]
    moves = [part.T @ weight for part, weight in zip(parts, np.split(weights, [len(one.x)]), strict=True)]
    seeds = seed_spread([moves[0] + moves[1]] if paired else moves)
    found = fitted_spread(seeds, residual_sum, df, float(weights @ weights), _noise_of_means(parts))
    if found.spread is None:
        return _Fitted(
            Refusal("one seed and as many levels as unknowns leave no error to judge by"), theta[0], theta[2]
        )
    if found.misfits:
        notes += ("one curve does not fit both variants: the multiplier changes along it, and this is its average",)
    interval = found.spread.interval(float(theta[3]), level).map(_exp)
    return _Fitted(interval, float(theta[0]), float(theta[2]), notes)


def _exp(value: float) -> float:
    return float(np.exp(np.clip(value, -700, 700)))


def _why_not(one: Ladder, two: Ladder) -> str | None:
    """The reason for which no multiplier can be had, before anything is fitted."""
    if min(len(one.x), len(two.x)) < 2:
        return "it takes two levels of each variant to know how the loss falls"
    low, high = (np.array([ladder.losses.mean(axis=1).min() for ladder in (one, two)]),
                 np.array([ladder.losses.mean(axis=1).max() for ladder in (one, two)]))  # fmt: skip
    if one.x.min() > two.x.max() or two.x.min() > one.x.max():
        return "the two variants were never run at comparable levels: their ranges do not overlap"
    if low.max() > high.min():
        better, worse = (one, two) if low[0] < low[1] else (two, one)
        bound = better.x.min() / worse.x.max()
        side = f"below {bound:.2g}" if better is one else f"above {1 / bound:.2g}"
        ends = f"{better.variant} is better at its least than {worse.variant} at its most"
        return f"the two variants share no loss, so it is {side}: {ends}"
    return None


def _noise_of_means(parts: list[Array]) -> Spread:
    """The spread over seeds of a mean of ln loss, pooled over levels and variants; none with one seed."""
    squares = sum(float((part**2).sum()) for part in parts)
    df = sum(part.shape[0] * (part.shape[1] - 1) for part in parts)
    return Spread(squares / df / min(part.shape[1] for part in parts) if df else 0.0, df)


def _curve(theta: Array, ln_x: Array, is_two: Array) -> Array:
    floor, ln_a, alpha, ln_m = theta
    return np.log(floor + np.exp(ln_a - alpha * (ln_x + ln_m * is_two)))


def fit_common_curve(ln_x: Array, ln_y: Array, is_two: Array, with_floor: bool = True) -> tuple[Array, Array]:
    """Least squares of ln L on ln(E + A (m x)^-alpha), m = 1 where `is_two` is 0: (E, ln A, alpha, ln m) and the
    Jacobian at the optimum, zero in the column of a floor that is not free."""
    centre, lowest = float(ln_x.mean()), float(np.exp(ln_y.min()))
    best, bounds = None, ([0.0, -50.0, 0.0, -50.0], [lowest * (1 - 1e-6), 50.0, 8.0, 50.0])
    for share in STARTS if with_floor else (0.0,):
        columns = np.stack([np.ones_like(ln_x), ln_x - centre, is_two], axis=1)
        level, slope, shift = np.linalg.lstsq(columns, np.log(np.exp(ln_y) - share * lowest), rcond=None)[0]
        alpha = float(np.clip(-slope, 1e-2, 7.9))
        start = np.array([share * lowest, level, alpha, float(np.clip(-shift / alpha, -40, 40))])
        free = slice(0, 4) if with_floor else slice(1, 4)

        def residual(part: Array, fixed: Array = start, free: slice = free) -> Array:
            theta = fixed.copy()
            theta[free] = part
            return _curve(theta, ln_x - centre, is_two) - ln_y

        found = least_squares(residual, start[free], bounds=(bounds[0][free], bounds[1][free]), x_scale="jac",
                              xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=400)  # fmt: skip
        if best is None or found.cost < best[0]:
            theta = start.copy()
            theta[free] = found.x
            best = (found.cost, theta)
    assert best is not None
    theta = best[1]
    jacobian = _jacobian(theta, ln_x - centre, is_two)
    if not with_floor or theta[0] < 1e-9 * lowest:
        jacobian[:, 0] = 0.0
    theta[1] += theta[2] * centre
    return theta, jacobian


def _jacobian(theta: Array, ln_x: Array, is_two: Array) -> Array:
    floor, ln_a, alpha, ln_m = theta
    power = np.exp(ln_a - alpha * (ln_x + ln_m * is_two))
    share = power / (floor + power)
    return np.stack([1 / (floor + power), share, -share * (ln_x + ln_m * is_two), -share * alpha * is_two], axis=1)


def _gap(one: Ladder, two: Ladder, paired: bool, level: float) -> Interval | Refusal:
    """Candidate minus baseline at the levels both have, averaged over them; Student's interval over seeds.

    Where they have none in common, as when a cost is drawn, the baseline is read between its levels (on a straight line
    in ln x, which lies above a curve that flattens out: it flatters the candidate a little).
    """
    matched = [(i, j) for i, x in enumerate(one.x) if (j := two.level_of(float(x))) is not None]
    within = [j for j, x in enumerate(two.x) if one.x[0] <= x <= one.x[-1]]
    if matched:
        first = np.stack([one.losses[i] for i, _ in matched]).mean(axis=0)
        second = np.stack([two.losses[j] for _, j in matched]).mean(axis=0)
    elif within:
        first = np.mean([_between(one, float(two.x[j])) for j in within], axis=0)
        second = two.losses[within].mean(axis=0)
    else:
        return Refusal("no level of the candidate lies among the baseline's")
    value = float(second.mean() - first.mean())
    moves = [-(first - first.mean()), second - second.mean()]
    spread = seed_spread([moves[0] + moves[1]] if paired else moves)
    return Refusal("one seed gives no interval") if spread is None else spread.interval(value, level)


def _between(ladder: Ladder, x: float) -> Array:
    """Each seed's loss at `x`, on straight lines in ln x between its levels: (seeds,)."""
    ln_x = np.log(ladder.x)
    return np.array([np.interp(np.log(x), ln_x, ladder.losses[:, seed]) for seed in range(ladder.losses.shape[1])])


def effective_speedup(fit: Fit, baseline_loss: float, loss: float, level: float = LEVEL) -> Interval:
    """How much more compute the baseline's law asks for `loss` than for `baseline_loss`, both measured at one compute:
    ((L_baseline - E) / (L - E))^(1/alpha), with the interval of the law's bootstrap.

    `fit`: the baseline's power law, with or without a floor. A draw whose floor lies above a loss has no finite answer
    and counts as infinite. Raises UserError for another law, and for a loss at or below the fitted floor.
    """
    place = "effective_speedup"
    if not isinstance(fit, Fit) or not isinstance(fit.law, PowerLaw | SaturatingPowerLaw):
        found = fit.law.name if isinstance(fit, Fit) else type(fit).__name__
        raise UserError(f"{place}: needs the fit of a power law, with or without a floor, found {found}")
    baseline_loss, loss = (
        arguments.above_zero(baseline_loss, place, "baseline_loss"),
        arguments.above_zero(loss, place, "loss"),
    )
    level = arguments.level_of(level, place)
    value = float(
        _speedup(np.array([fit.params.get("E", 0.0)]), np.array([fit.params["alpha"]]), baseline_loss, loss)[0]
    )
    if not np.isfinite(value):
        raise UserError(f"effective_speedup: the fitted floor {fit.params.get('E', 0.0):.4g} is not below both losses")
    if not len(fit.draws):
        return Interval(value, float("nan"), float("nan"), level)
    floors = fit.draws["E"].to_numpy() if "E" in fit.draws else np.zeros(len(fit.draws))
    draws = _speedup(floors, fit.draws["alpha"].to_numpy(), baseline_loss, loss)
    lower, upper = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
    return Interval(value, float(lower), float(upper), level)


def _speedup(floors: Array, alphas: Array, baseline_loss: float, loss: float) -> Array:
    known = floors < min(baseline_loss, loss)
    ratio = np.where(known, baseline_loss - floors, 1.0) / np.where(known, loss - floors, 1.0)
    with np.errstate(over="ignore"):
        return np.where(known, np.exp(np.log(ratio) / alphas), np.inf)
