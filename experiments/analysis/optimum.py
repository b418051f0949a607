"""Where a sweep's loss is lowest, per size: the optimum, how far it drifts with the size, and what ignoring that costs.

For every value of `panel` and every size (`per`) the losses are averaged over seeds at each x, and a parabola in log2 x
is fitted around the lowest mean. With o(s) the log2 of the optimum of size s, and b the base size:
drift(s) = o(s) - o(b), in octaves; regret(s) = L_s(o(b)) - L_s(o(s)), in the units of the loss, both read from Akima's
interpolant through the means of size s. A regret below zero is noise, and not hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from experiments.analysis import arguments
from experiments.analysis.columns import column, diverged, finished, row_names
from experiments.analysis.parabola import Array, Refusal, Vertex, find_vertex, read_loss
from experiments.analysis.where import select
from nanogpt.config import UserError

LEVEL = 0.95
ENOUGH_DRAWS = 0.95  # share of the resamples that must have a number too; else its interval would hide the failures


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval over seeds; NaN bounds where there is none."""

    value: float
    lower: float = float("nan")
    upper: float = float("nan")

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.lower))


@dataclass(frozen=True, eq=False)
class SizeOptimum:
    """One basin. `points`: a row per x tried (x, mean, sd, runs, diverged, fitted), mean NaN where x cannot be used.

    `optimum` is log2 x, `loss` is read there from Akima's interpolant as the regret is, and `level` is the parabola's
    minimum. What is not known is a Refusal that says why; `drift` and `regret` of the base are zero.
    `seed_sd`: deviation over seeds of the loss at the x of lowest mean, NaN with one seed.
    """

    size: Any
    optimum: Estimate | Refusal
    loss: float
    level: float
    curvature: float
    seed_sd: float
    points: pd.DataFrame
    drift: Estimate | Refusal
    regret: Estimate | Refusal


@dataclass(frozen=True, eq=False)
class Panel:
    """The basins of one value of the panel column, smallest size first. `slope`: octaves per doubling of the size,
    a line through the sizes that have an optimum; None where fewer than two have, or sizes are not positive numbers."""

    value: Any
    base: Any
    seeds: tuple[int, ...]
    sizes: tuple[SizeOptimum, ...]
    slope: Estimate | None


@dataclass(frozen=True, eq=False)
class Optima:
    """What `find_optima` found: columns by their full names, how it was fitted, and a Panel per value of `panel`.

    With one seed there are no intervals.
    """

    x: str
    per: str
    panel: str | None
    y: str
    where: str | None
    window: int
    bootstrap: int
    seed: int
    panels: tuple[Panel, ...]


def find_optima(
    runs: pd.DataFrame,
    x: str,
    per: str,
    panel: str | None = None,
    y: str = "val_loss",
    base: Any = None,
    where: str | None = None,
    window: int = 2,
    bootstrap: int = 400,
    seed: int = 0,
) -> Optima:
    """Fit the optimum of `x` for every size `per`, in every `panel`; the base is the smallest size unless given.

    Fitted are the means within `window` grid steps of the lowest. An x counts only where every seed of the panel
    finished: a mean over the survivors of a divergence is no mean. Intervals come from `bootstrap` resamples of whole
    seeds, the same for all sizes of a panel because seeds are paired: estimate +- t * s * sqrt(n / (n - 1)), where s is
    the deviation over the resamples, n the number of seeds and t the quantile of Student's distribution with n - 1
    degrees of freedom. (Percentiles of the resamples of three seeds would hold the truth in 3 cases of 4.)

    Raises UserError for an unknown column, a value of x that is not above zero, an unknown base, a finished run without
    a finite loss, and two runs with the same x, size, panel and seed.
    """
    runs = arguments.own_index(arguments.table_of(runs, "optimum"))
    window = arguments.whole(window, "optimum", "window", 1)
    bootstrap = arguments.whole(bootstrap, "optimum", "bootstrap", 0)
    x, per, y = (column(runs, name, "optimum") for name in (x, per, y))
    panel = column(runs, panel, "optimum") if panel is not None else None
    rows = runs[select(runs, where, "optimum.where")] if where else runs
    rows = rows.dropna(subset=[x, per])
    if not len(rows):
        raise UserError("optimum: there are no runs")
    if not (pd.to_numeric(rows[x], errors="coerce") > 0).all():
        raise UserError(f"optimum: {x} must be a number above 0 in every run, since its logarithm is fitted")
    _refuse_trials(rows, x)
    done = rows[finished(rows)]
    arguments.numbers(done[y], row_names(done).to_list(), "optimum", False, arguments.LEAVE_OUT)
    base = _base(rows[per], base)
    groups = rows.groupby(panel, sort=False) if panel is not None else [(None, rows)]
    options = {"window": window, "bootstrap": bootstrap, "seed": seed}
    panels = tuple(_panel(value, part, x, per, y, base, **options) for value, part in groups)
    return Optima(x, per, panel, y, where, window, bootstrap, seed, panels)


def _refuse_trials(rows: pd.DataFrame, x: str) -> None:
    """Trials of a search lie on no grid: neighbours come arbitrarily close, so that a parabola through them fits their
    noise, and whatever else was searched varies from one to the next."""
    if "trial" not in rows.columns or rows["trial"].isna().all():
        return
    raise UserError(f"optimum: these runs are trials of a search, whose values of {x} were proposed and not laid out, "
                    f"with other factors varying beside it; sweep {x} on a grid to find its optimum (the figure "
                    "response_surface shows what the search learnt)")  # fmt: skip


def _sizes(column: "pd.Series[Any]") -> list[Any]:
    """The different sizes in order; a gap elsewhere in the column must not turn width 32 into 32.0."""
    values = sorted(column.unique().tolist())
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]


def _base(sizes: "pd.Series[Any]", base: Any) -> Any:
    known = _sizes(sizes)
    if base is not None and base not in known:
        raise UserError(f"optimum: base {base!r} is not among the sizes {', '.join(map(str, known))}")
    return known[0] if base is None else base


@dataclass(frozen=True, eq=False)
class _Grid:
    """The losses of one size: seeds x values of x, NaN where a run is missing, unfinished or diverged."""

    size: Any
    values: Array
    losses: Array
    diverged: "np.ndarray[Any, np.dtype[np.intp]]"

    @property
    def usable(self) -> Array:
        """The same with NaN in every column that any seed lacks."""
        return np.where(np.isfinite(self.losses).all(axis=0), self.losses, np.nan)


def _panel(
    value: Any, rows: pd.DataFrame, x: str, per: str, y: str, base: Any, window: int, bootstrap: int, seed: int
) -> Panel:
    names = arguments.seeds_of(rows, "optimum")
    done = finished(rows) | diverged(rows)
    seeds = tuple(sorted(names[done].unique().tolist())) or (0,)
    grids = [_grid(size, rows[rows[per] == size], names, seeds, x, y) for size in _sizes(rows[per])]
    everyone = np.arange(len(seeds))
    whole = [_reading(grids, base, everyone, window)]
    rng = np.random.default_rng(seed)
    resamples = bootstrap if len(seeds) > 1 else 0
    draws = [_reading(grids, base, rng.integers(len(seeds), size=len(seeds)), window) for _ in range(resamples)]
    sizes = tuple(_size(grid, index, whole[0], draws, len(seeds)) for index, grid in enumerate(grids))
    slope = _estimate(whole[0].slope, [draw.slope for draw in draws], len(seeds))
    return Panel(value, base, seeds, sizes, slope if isinstance(slope, Estimate) else None)


def _grid(size: Any, rows: pd.DataFrame, names: "pd.Series[int]", seeds: Sequence[int], x: str, y: str) -> _Grid:
    values = np.array(sorted(rows[x].unique()), dtype=float)
    losses = np.full((len(seeds), len(values)), np.nan)
    lost = np.zeros(len(values), dtype=np.intp)
    good, bad = finished(rows), diverged(rows)
    seen: set[tuple[int, int]] = set()
    for index, number, loss in zip(rows.index, rows[x].astype(float), rows[y], strict=True):
        at = int(np.searchsorted(values, number))
        lost[at] += bool(bad[index])
        if not good[index]:
            continue
        if (names[index], at) in seen:
            what = f"two runs have {x}={number:g}, size {size} and seed {names[index]}"
            raise UserError(
                f"optimum: {what}: something else varies too; name it as `panel`, or leave it out by `where`"
            )
        seen.add((names[index], at))
        losses[seeds.index(names[index]), at] = float(loss)
    return _Grid(size, values, losses, lost)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Everything that is read off one set of seeds; the bootstrap repeats it on others."""

    vertices: tuple[Vertex | Refusal, ...]
    drifts: tuple[float | Refusal, ...]
    regrets: tuple[float | Refusal, ...]
    slope: float | Refusal


def _reading(grids: Sequence[_Grid], base: Any, seeds: "np.ndarray[Any, np.dtype[np.intp]]", window: int) -> _Reading:
    means = [grid.usable[seeds].mean(axis=0) for grid in grids]
    places = [np.log2(grid.values) for grid in grids]
    vertices = tuple(find_vertex(at, mean, window) for at, mean in zip(places, means, strict=True))
    found = dict(zip((grid.size for grid in grids), vertices, strict=True))
    origin = found.get(base, Refusal("the base size has no runs here"))
    drifts, regrets = [], []
    for vertex, at, mean in zip(vertices, places, means, strict=True):
        drifts.append(_drift(vertex, origin))
        regrets.append(_regret(vertex, origin, at, mean))
    return _Reading(vertices, tuple(drifts), tuple(regrets), _slope(found))


def _drift(vertex: Vertex | Refusal, origin: Vertex | Refusal) -> float | Refusal:
    if isinstance(origin, Refusal):
        return Refusal(f"the base has no optimum: {origin.reason}")
    return vertex if isinstance(vertex, Refusal) else vertex.log2_x - origin.log2_x


def _regret(vertex: Vertex | Refusal, origin: Vertex | Refusal, at: Array, mean: Array) -> float | Refusal:
    if isinstance(origin, Refusal):
        return Refusal(f"the base has no optimum: {origin.reason}")
    if isinstance(vertex, Refusal):
        return vertex
    there, here = read_loss(at, mean, origin.log2_x), read_loss(at, mean, vertex.log2_x)
    if isinstance(there, Refusal):
        return Refusal(f"no loss can be read at the base's optimum: {there.reason}")
    return here if isinstance(here, Refusal) else there - here


def _slope(found: dict[Any, Vertex | Refusal]) -> float | Refusal:
    known = [(size, vertex.log2_x) for size, vertex in found.items() if isinstance(vertex, Vertex)]
    if len(known) < 2 or not all(isinstance(size, int | float) and size > 0 for size, _ in known):
        return Refusal("a slope needs the optima of two sizes")
    sizes, places = np.array(known, dtype=float).T
    return float(np.polyfit(np.log2(sizes), places, 1)[0])


def _estimate(value: float | Refusal, draws: Sequence[float | Refusal], seeds: int) -> Estimate | Refusal:
    """The value with the interval that `find_optima` describes."""
    if isinstance(value, Refusal):
        return value
    numbers = [draw for draw in draws if not isinstance(draw, Refusal)]
    if len(numbers) < 2 or len(numbers) < ENOUGH_DRAWS * len(draws):
        return Estimate(value)
    widened = float(np.std(numbers, ddof=1)) * np.sqrt(seeds / (seeds - 1))
    half = float(student.ppf(0.5 + LEVEL / 2, seeds - 1)) * widened
    return Estimate(value, value - half, value + half)


def _size(grid: _Grid, index: int, whole: _Reading, draws: Sequence[_Reading], seeds: int) -> SizeOptimum:
    """One size's numbers with their intervals, and the points they were fitted to."""
    vertex = whole.vertices[index]
    places = [_place(draw.vertices[index]) for draw in draws]
    blank = SizeOptimum(
        size=grid.size,
        optimum=_estimate(_place(vertex), places, seeds),
        loss=float("nan"),
        level=float("nan"),
        curvature=float("nan"),
        seed_sd=_seed_sd(grid),
        points=_points(grid, vertex),
        drift=_estimate(whole.drifts[index], [draw.drifts[index] for draw in draws], seeds),
        regret=_estimate(whole.regrets[index], [draw.regrets[index] for draw in draws], seeds),
    )
    if isinstance(vertex, Refusal):
        return blank
    there = read_loss(np.log2(grid.values), grid.usable.mean(axis=0), vertex.log2_x)
    loss = float("nan") if isinstance(there, Refusal) else there
    return replace(blank, loss=loss, level=vertex.loss, curvature=vertex.curvature)


def _place(vertex: Vertex | Refusal) -> float | Refusal:
    return vertex if isinstance(vertex, Refusal) else vertex.log2_x


def _seed_sd(grid: _Grid) -> float:
    means = grid.usable.mean(axis=0)
    if len(grid.losses) < 2 or not np.isfinite(means).any():
        return float("nan")
    return float(grid.losses[:, int(np.nanargmin(means))].std(ddof=1))


def _points(grid: _Grid, vertex: Vertex | Refusal) -> pd.DataFrame:
    counts = np.isfinite(grid.losses).sum(axis=0)
    several = len(grid.losses) > 1
    index = np.arange(len(grid.values))
    fitted = (index >= vertex.first) & (index <= vertex.last) if isinstance(vertex, Vertex) else index < 0
    mean = grid.usable.mean(axis=0)
    return pd.DataFrame({
        "x": grid.values,
        "mean": mean,
        "sd": grid.usable.std(axis=0, ddof=1) if several else np.nan,
        "runs": counts,
        "diverged": grid.diverged,
        "fitted": fitted & np.isfinite(mean),
    })  # fmt: skip
