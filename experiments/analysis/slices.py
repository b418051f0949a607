"""Losses at given computes: IsoFLOP slices as they were measured, or read between the runs of each size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import Akima1DInterpolator

from experiments.analysis.laws import Array
from experiments.analysis.observations import Observations
from nanogpt.config import UserError

TOLERANCE = 0.1  # runs whose compute differs by less belong to one budget (Porian et al. 2024 allow the same)
LEAST_SIZES = 4  # a minimum between fewer sizes is one of three points, and no residual could doubt it
BUDGETS = 8
MORE_SIZES = 1.5


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one measured loss, in nats, and where it is known from."""

    sd: float | Callable[[Array], Array]
    source: str

    def at(self, losses: Array) -> Array:
        """The deviation at each loss."""
        return self.sd(losses) if callable(self.sd) else np.full_like(losses, self.sd)

    @property
    def words(self) -> str:
        """`0.002 nats (given)`."""
        return f"rising with the loss ({self.source})" if callable(self.sd) else f"{self.sd:.2g} nats ({self.source})"


@dataclass(frozen=True, eq=False)
class Slice:
    """The losses of several sizes at one compute: n, d and loss rise with n; `draws`: (draws, sizes) disturbed ones."""

    flops: float
    n: Array
    d: Array
    loss: Array
    draws: Array


def porian_noise(low: float, high: float, at_low: float, at_high: float) -> Callable[[Array], Array]:
    """Noise that grows with the loss: sd `low` below loss `at_low`, `high` above `at_high`, log-log between.

    Porian et al. 2024 (appendix) describe it with .002 at 3 and .05 at 7 nats for RefinedWeb. Their published figures
    were made with the low value everywhere: the code compares ln(loss) with the limits, which no loss reaches.
    """

    def sd(losses: Array) -> Array:
        share = np.log(losses / at_low) / np.log(at_high / at_low)
        return np.asarray(low * (high / low) ** np.clip(share, 0.0, 1.0))

    return sd


def noise_of(observations: Observations, given: float | Callable[[Array], Array] | None) -> Noise:
    """The noise to disturb losses with: as given; else over seeds; else the scatter about parabolas over ln N.

    The last one takes misfit for noise and so errs on the wide side; where no slice has a residual, it is unknown: zero
    draws, and no interval.
    """
    if given is not None:
        if not callable(given) and not given >= 0:
            raise UserError(f"approaches: noise must be zero or positive, found {given!r}")
        return Noise(given, "given")
    if observations.noise is not None:
        return Noise(observations.noise, "over seeds")
    squares, freedom = 0.0, 0
    for part in _plain_slices(observations):
        x = np.log(part.n)
        near = np.sort(np.argsort(np.abs(x - x[part.loss.argmin()]), kind="stable")[:7])
        if len(near) > 3:
            steps = x[near] - x[near].mean()
            left = part.loss[near] - np.polyval(np.polyfit(steps, part.loss[near], 2), steps)
            squares, freedom = squares + float(left @ left), freedom + len(near) - 3
    return Noise(np.sqrt(squares / freedom) if freedom else 0.0, "scatter about parabolas" if freedom else "unknown")


def _plain_slices(observations: Observations) -> list[Slice]:
    try:
        return slices(observations, None, observations.table["loss"].to_numpy(dtype=float)[None][:0])
    except UserError:
        return []


def noise_draws(table: pd.DataFrame, noise: Noise, draws: int, seed: int) -> Array:
    """Losses disturbed by noise, (draws, rows). Rows of one run move together; none where the noise is unknown."""
    losses = table["loss"].to_numpy(dtype=float)
    if noise.source == "unknown" or draws == 0:
        return np.zeros((0, len(losses)))
    runs = table["run"].to_numpy()
    normal = np.random.default_rng([seed, 1]).normal(size=(draws, int(runs.max()) + 1))[:, runs]
    return np.asarray(np.maximum(losses + noise.at(losses) * normal, 1e-3 * losses))


def slices(observations: Observations, budgets: Sequence[float] | int | None, losses: Array) -> list[Slice]:
    """The IsoFLOP slices of a table; `losses`: (draws, rows) of disturbed losses, which each slice carries along.

    Without `budgets` they are the ones the runs were trained at (`is_measured`). Otherwise, and for a number or a list
    of budgets, losses are read between the runs (or along the curves) of each size.
    Raises UserError where no budget holds four sizes.
    """
    if is_measured(observations, budgets):
        return _measured(observations.table, losses)
    computes = _choose_budgets(observations, BUDGETS if budgets is None else budgets)
    return _between(observations, computes, losses)


def is_measured(observations: Observations, budgets: Sequence[float] | int | None) -> bool:
    """Whether the runs were trained at equal computes: at least two hold four sizes, and reading between the runs would
    not give half as many sizes again, as it does where the diagonals of a grid of N and D meet by chance."""
    if budgets is not None or observations.source == "curves":
        return False
    measured = _measured(observations.table, np.zeros((0, len(observations.table))))
    flops = observations.table.groupby("n")["flops"]
    low, high = flops.min().to_numpy(dtype=float), flops.max().to_numpy(dtype=float)
    near = 1 + TOLERANCE
    could = sum(int(((low <= part.flops * near) & (part.flops <= high * near)).sum()) for part in measured)
    return len(measured) >= 2 and could < MORE_SIZES * sum(len(part.n) for part in measured)


def _measured(table: pd.DataFrame, losses: Array) -> list[Slice]:
    n, d, flops, loss = (table[name].to_numpy(dtype=float) for name in ("n", "d", "flops", "loss"))
    order = np.argsort(flops, kind="stable")
    starts = np.flatnonzero(np.diff(np.log(flops[order]), prepend=-np.inf) > np.log1p(TOLERANCE))
    found = []
    for rows in np.split(order, starts[1:]):
        away = np.abs(np.log(flops[rows]) - np.log(flops[rows]).mean())
        rows = rows[np.lexsort((away, n[rows]))]
        rows = rows[np.unique(n[rows], return_index=True)[1]]  # one run per size, the nearest; sizes rising
        if len(rows) >= LEAST_SIZES and flops[rows].max() <= (1 + TOLERANCE) ** 2 * flops[rows].min():
            budget = float(np.exp(np.log(flops[rows]).mean()))
            found.append(Slice(budget, n[rows], d[rows], loss[rows], losses[:, rows]))
    return found


def _choose_budgets(observations: Observations, budgets: Sequence[float] | int) -> Array:
    """The budgets asked for; a number of them is spread over the computes that four sizes have reached."""
    if not isinstance(budgets, int):
        return np.asarray(budgets, dtype=float)
    reach = observations.table.groupby("path").agg(n=("n", "first"), low=("flops", "min"), high=("flops", "max"))
    grid = np.geomspace(reach["low"].min(), reach["high"].max(), 400)
    inside = (reach["low"].to_numpy()[:, None] <= grid) & (grid <= reach["high"].to_numpy()[:, None])
    held = np.array([reach["n"][column].nunique() for column in inside.T]) >= LEAST_SIZES
    if not held.any():
        raise UserError(f"approach 2: at no compute are there {LEAST_SIZES} sizes; train sizes at equal FLOPs, or more "
                        "token counts per size")  # fmt: skip
    return np.geomspace(grid[held].min(), grid[held].max(), budgets)


def _between(observations: Observations, budgets: Array, losses: Array) -> list[Slice]:
    plain = observations.table["loss"].to_numpy(dtype=float)[None]
    sizes, there = losses_at(observations, budgets, np.concatenate([plain, losses]))
    found = []
    for i, flops in enumerate(budgets):
        known = np.isfinite(there[:, 0, i])
        if known.sum() < LEAST_SIZES:
            continue
        n = sizes[known]
        found.append(
            Slice(float(flops), n, observations.tokens(n, float(flops)), there[known, 0, i], there[known, 1:, i].T)
        )
    if not found:
        raise UserError(f"approach 2: no budget holds {LEAST_SIZES} sizes")
    return found


def losses_at(observations: Observations, budgets: Array, losses: Array) -> tuple[Array, Array]:
    """The sizes, and each size's loss at each compute: (sizes, draws, computes), NaN where no path of it reaches.

    Between the points of a path ln L is Akima's piecewise cubic in ln C; of several paths of a size the lowest counts.
    """
    table, sizes = observations.table, observations.sizes
    there = np.full((len(sizes), len(losses), len(budgets)), np.nan)
    place = {size: i for i, size in enumerate(sizes)}
    flops, path = table["flops"].to_numpy(dtype=float), table["path"].to_numpy()
    for code in np.unique(path):
        rows = np.flatnonzero(path == code)
        rows = rows[np.argsort(flops[rows], kind="stable")]
        i = place[table["n"].iloc[rows[0]]]
        there[i] = np.fmin(there[i], along(flops[rows], losses[:, rows], budgets))
    return sizes, there


def along(flops: Array, losses: npt.NDArray[np.float64], budgets: Array) -> Array:
    """One path read at each compute inside it: (draws, computes)."""
    inside = (budgets >= flops[0] * (1 - 1e-9)) & (budgets <= flops[-1] * (1 + 1e-9))
    read = np.full((len(losses), len(budgets)), np.nan)
    if len(flops) == 1 or not inside.any():
        read[:, inside] = losses[:, :1]
        return read
    at = np.clip(np.log(budgets[inside]), np.log(flops[0]), np.log(flops[-1]))
    read[:, inside] = np.exp(Akima1DInterpolator(np.log(flops), np.log(losses).T)(at).T)
    return read
