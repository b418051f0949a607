"""The figure `response_surface`: what a search has learnt about its whole space, not only its best point."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from experiments.analysis.axes import ALARM, INK, VIRIDIS, counts, done, label, place, results_of
from experiments.analysis.columns import column, diverged, finished
from experiments.analysis.contract import figure
from experiments.analysis.influence import fitted_surface, influence, inside_hull, order_of_merit
from experiments.analysis.panels import colour_bar, divide
from experiments.analysis.searched import Searched
from experiments.analysis.ticks import human, log_axis
from nanogpt.config import UserError

MOST_SLICES = 6
MOST_SURFACES = 3
COLUMNS = 3
COLOURS = VIRIDIS.reversed()
GRID = 80
WORST_SHOWN = 0.85  # quantile of the losses at which the colours end
MIDDLE = "#6ccd5a"  # of the colours, for the legend
STAR: dict[str, Any] = {"marker": "*", "ls": "", "ms": 15, "mfc": "none", "mec": ALARM, "mew": 1.6, "zorder": 7}


@dataclass(frozen=True)
class _Factor:
    """One factor of the search: its column, its scale, and how much it matters."""

    name: str
    scale: str
    share: float

    @property
    def is_number(self) -> bool:
        return self.scale != "choice"

    def unit(self, values: "pd.Series", low: float, high: float) -> np.ndarray:
        """Values as numbers from 0 to 1 over the range that was tried, on the factor's own scale."""
        numbers = values.astype(float).to_numpy()
        if self.scale == "log":
            return np.log(numbers / low) / math.log(high / low)
        return (numbers - low) / (high - low)


@dataclass(frozen=True)
class _Seen:
    """What the figure shows of each trial: `loss` is the one that is drawn, `y` the final one that decides the best."""

    runs: pd.DataFrame
    y: str
    loss: str
    words: str

    @property
    def measured(self) -> pd.DataFrame:
        """Completed and pruned trials that have the loss that is drawn."""
        return self.runs[(finished(self.runs) | _pruned(self.runs)) & self.runs[self.loss].notna()]

    @property
    def lost(self) -> pd.DataFrame:
        return self.runs[diverged(self.runs)]

    @property
    def best(self) -> Any | None:
        """The index of the trial of lowest final loss."""
        good = self.runs[finished(self.runs) & self.runs[self.y].notna()]
        return good[self.y].astype(float).idxmin() if len(good) else None

    def among(self, part: pd.DataFrame) -> "_Seen":
        return _Seen(part, self.y, self.loss, self.words)


@figure
def response_surface(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    searched: Searched | None = None,
    y: str = "val_loss",
    names: Sequence[str] = (),
) -> Axes:
    """Pairs of the most influential factors as an interpolated surface under every trial, and a slice for each factor.

    Where trials were pruned, the loss that is drawn is the one at the first rung: there all were measured after the
    same share of their training. `names` chooses the two factors of the surface. Where a grid stands beside the search,
    the surface is drawn for each of its points. Raises UserError for a study that is no search, or has no result yet.
    """
    if searched is None:
        raise UserError("response_surface: the study is no search; it has no sweep.space, and searched= is not given")
    results_of(df, y, "response_surface")
    seen = _seen(df, searched, column(df, y, "response_surface"))
    factors = _factors(seen, searched)
    losses = seen.measured[seen.loss].astype(float)
    low = float(losses.min())
    norm = Normalize(low, max(float(losses.quantile(WORST_SHOWN)), low + 1e-9))
    surfaces = _surfaces(seen, factors, searched, names)
    slices = factors[:MOST_SLICES]
    columns = _columns(len(surfaces), len(slices))
    rows = -(-(len(surfaces) + len(slices)) // columns)
    title = f"{seen.words[0].upper()}{seen.words[1:]} over the space that was searched"
    _, axes = place(ax, title, 3.55 * columns + 1.2, 3.6 * rows + 1.4)
    panels = divide(axes, rows, columns, gap=(50.0, 56.0), right=62.0)
    for panel, (part, pair, head) in zip(panels, surfaces, strict=False):
        _surface(panel, part, pair, norm, head)
    for panel, factor in zip(panels[len(surfaces) :], slices, strict=False):
        _slice(panel, seen, factor, norm)
    for panel in panels[: len(surfaces) + len(slices)]:
        done(panel, axes, "")
    for spare in panels[len(surfaces) + len(slices) :]:
        spare.remove()
    colour_bar(axes, panels[columns - 1], ScalarMappable(norm=norm, cmap=COLOURS), label(seen.y))
    return done(axes, ax, _note(seen, factors), _legend(seen))


def _columns(surfaces: int, slices: int) -> int:
    """As many as leave the fewest places empty; the slices go on in the row where the surfaces end."""
    return min(range(COLUMNS, 1, -1), key=lambda columns: -(surfaces + slices) % columns)


def _seen(runs: pd.DataFrame, searched: Searched, y: str) -> _Seen:
    """The final losses, or where trials were pruned those at the first rung."""
    words = label(y).partition(" (")[0]
    at_rung = "first_rung_loss" in runs.columns and runs["first_rung_loss"].notna().any()
    if y != "val_loss" or not at_rung or not _pruned(runs).any():
        return _Seen(runs, y, y, words)
    share = f" after {searched.first_rung:.0%} of the training" if searched.first_rung else " at the first rung"
    return _Seen(runs, y, "first_rung_loss", words + share)


def _factors(seen: _Seen, searched: Searched) -> list[_Factor]:
    """The factors of the search that took several values, the most influential first."""
    runs, merit = seen.runs, order_of_merit(seen.runs, seen.loss)
    found = []
    for name, scale in searched.scales.items():
        if name in runs.columns and runs[name].map(repr).nunique() > 1:
            numeric = pd.api.types.is_numeric_dtype(runs[name]) and not pd.api.types.is_bool_dtype(runs[name])
            scale = scale if numeric or scale == "choice" else "choice"
            found.append(_Factor(name, scale, influence(runs[name], merit, scale == "choice")))
    if not found:
        raise UserError("response_surface: no factor of the search took two values")
    return sorted(found, key=lambda factor: -factor.share if math.isfinite(factor.share) else 0.0)


_Panel = tuple[_Seen, tuple[_Factor, _Factor], str]


def _surfaces(seen: _Seen, factors: Sequence[_Factor], searched: Searched, names: Sequence[str]) -> list[_Panel]:
    """The panels with a surface: pairs of factors, or the first pair at every point of the grid beside the search."""
    runs = seen.runs
    numbers = [factor for factor in factors if factor.is_number]
    if names:
        chosen = [column(runs, name, "response_surface") for name in names]
        numbers = [factor for name in chosen for factor in numbers if factor.name == name]
    pairs = list(itertools.combinations(numbers[:3], 2))
    cells = [name for name in searched.cells if name in runs.columns]
    if not cells or not pairs:
        return [(seen, pair, "") for pair in pairs[:MOST_SURFACES]]
    groups = runs.groupby(cells if len(cells) > 1 else cells[0], sort=True, dropna=False)
    said = [
        (group, ", ".join(f"{c.rpartition('.')[2]} = {_say(group[c].iloc[0])}" for c in cells)) for _, group in groups
    ]
    return [(seen.among(group), pairs[0], title) for group, title in said[: 2 * MOST_SURFACES]]


def _surface(axes: Axes, seen: _Seen, pair: tuple[_Factor, _Factor], norm: Normalize, title: str) -> None:
    """One pair: the spline within the hull of its trials, and the trials in the colours of their own losses."""
    x, v = pair
    place(axes, title or f"{_leaf(x.name)} and {_leaf(v.name)}")
    usable = seen.measured
    limits = [(float(seen.runs[f.name].min()), float(seen.runs[f.name].max())) for f in pair]
    if all(low < high for low, high in limits) and len(usable):
        points = np.column_stack([f.unit(usable[f.name], *ends) for f, ends in zip(pair, limits, strict=True)])
        # Far above the colours' end nothing is shown, and a steep wall would make the spline ring.
        low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
        cap = high + 0.25 * (high - low)
        surface = fitted_surface(points, np.minimum(usable[seen.loss].to_numpy(dtype=float), cap))
        if surface is not None:
            side = np.linspace(0, 1, GRID)
            mesh = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
            heights = np.where(inside_hull(points, mesh), surface(mesh), np.nan).reshape(GRID, GRID)
            across, up = (_from_unit(f, side, *ends) for f, ends in zip(pair, limits, strict=True))
            levels = np.linspace(low, high, 13)
            axes.contourf(across, up, heights, levels=levels, cmap=COLOURS, extend="both", alpha=0.75)
    _trials(axes, seen, x.name, v.name, norm)
    for factor, which, ends in ((x, "x", limits[0]), (v, "y", limits[1])):
        _scale(axes, factor, which, ends)
    axes.set(xlabel=_label(x.name), ylabel=_label(v.name))


def _from_unit(factor: _Factor, side: np.ndarray, low: float, high: float) -> np.ndarray:
    return low * (high / low) ** side if factor.scale == "log" else low + (high - low) * side


def _trials(axes: Axes, seen: _Seen, x: str, v: str, norm: Normalize) -> None:
    axes.plot(seen.lost[x], seen.lost[v], "X", ms=7, color=ALARM, ls="", zorder=5)
    for part, marker, size, edge in _kinds(seen):
        axes.scatter(part[x], part[v], c=part[seen.loss], cmap=COLOURS, norm=norm, s=size, marker=marker,
                     edgecolors=edge, linewidths=0.8, zorder=6)  # fmt: skip
    if seen.best is not None:
        best = seen.runs.loc[seen.best]
        axes.plot([best[x]], [best[v]], **STAR)


def _kinds(seen: _Seen) -> list[tuple[pd.DataFrame, str, float, str]]:
    """Pruned trials as triangles, completed ones as dots above them."""
    measured = seen.measured
    return [(measured[_pruned(measured)], "v", 28.0, INK), (measured[finished(measured)], "o", 38.0, INK)]


def _slice(axes: Axes, seen: _Seen, factor: _Factor, norm: Normalize) -> None:
    """Loss against one factor: every trial, those beyond the axis at its upper edge."""
    share = f"{factor.share:.0%} of the rank variance" if math.isfinite(factor.share) else "too few trials to weigh"
    place(axes, f"{_leaf(factor.name)}: {share}")
    losses, at = seen.measured[seen.loss].astype(float), _positions(seen.runs, factor)
    low, high = float(losses.min()), float(losses.quantile(0.95))
    pad = max(high - low, 1e-3 * abs(low) + 1e-12)
    bottom, top = low - 0.12 * pad, high + 0.45 * pad
    axes.plot(at[seen.lost.index], np.full(len(seen.lost), top), "X", ms=7, color=ALARM, clip_on=False, zorder=5)
    for part, marker, size, edge in _kinds(seen):
        axes.scatter(at[part.index], losses[part.index].clip(upper=top), c=part[seen.loss], cmap=COLOURS, norm=norm,
                     s=size, marker=marker, edgecolors=edge, linewidths=0.8, zorder=6, clip_on=False)  # fmt: skip
    _median_line(axes, at[losses.index], losses, factor)
    if seen.best is not None and seen.best in losses.index:
        axes.plot([float(at.loc[seen.best])], [min(float(losses.loc[seen.best]), top)], **STAR)
    axes.set_ylim(bottom, top)
    if factor.is_number:
        _scale(axes, factor, "x", (float(at.min()), float(at.max())))
    else:
        choices = _choices(seen.runs, factor)
        axes.set_xticks(range(len(choices)), [_say(choice) for choice in choices])
        axes.set_xlim(-0.6, len(choices) - 0.4)
    axes.set(xlabel=_label(factor.name), ylabel=label(seen.y).replace("validation", "val."))


def _choices(runs: pd.DataFrame, factor: _Factor) -> list[Any]:
    values = runs[factor.name].dropna().unique().tolist()
    return sorted(values) if all(isinstance(value, int | float) for value in values) else sorted(values, key=str)


def _positions(runs: pd.DataFrame, factor: _Factor) -> "pd.Series[float]":
    """Where each run stands along a slice; choices side by side, spread a little so that equal ones do not hide."""
    if factor.is_number:
        return runs[factor.name].astype(float)
    choices = _choices(runs, factor)
    spread = itertools.cycle((0.0, 0.12, -0.12, 0.24, -0.24))
    return runs[factor.name].map(choices.index).astype(float) + pd.Series(
        [next(spread) for _ in runs.index], runs.index
    )


def _median_line(axes: Axes, place: "pd.Series[float]", losses: "pd.Series[float]", factor: _Factor) -> None:
    """Medians of the trials in bins of equal count, or of each choice."""
    if len(losses) < 8:
        return
    bins = place.round() if not factor.is_number else pd.qcut(place, int(np.clip(len(place) // 4, 2, 6)), labels=False,
                                                              duplicates="drop")  # fmt: skip
    medians = losses.groupby(bins).median()
    centres = place.groupby(bins).median() if factor.is_number else medians.index
    style = "_" if not factor.is_number else "-"
    axes.plot(centres, medians, style, color=INK, lw=1.2, ms=26, alpha=0.7, zorder=4)


def _scale(axes: Axes, factor: _Factor, which: str, ends: tuple[float, float]) -> None:
    low, high = ends
    if low == high:
        return
    margin = 0.04
    if factor.scale == "log":
        wide = (high / low) ** margin
        (axes.set_xlim if which == "x" else axes.set_ylim)(low / wide, high * wide)
        log_axis(axes, which)
    else:
        wide = margin * (high - low)
        (axes.set_xlim if which == "x" else axes.set_ylim)(low - wide, high + wide)


def _legend(seen: _Seen) -> list[Line2D]:
    """Only what the figure holds."""
    done, pruned, lost = (int(mask(seen.runs).sum()) for mask in (finished, _pruned, diverged))
    shown = [Line2D([], [], marker="o", ls="", mfc=MIDDLE, mec=INK, ms=6, label=f"completed ({done})")]
    if pruned:
        shown.append(Line2D([], [], marker="v", ls="", mfc=MIDDLE, mec=INK, ms=6, label=f"pruned ({pruned})"))
    if lost:
        shown.append(Line2D([], [], marker="X", ls="", color=ALARM, ms=6, label=f"diverged ({lost})"))
    final = "lowest final loss" if pruned else "lowest loss"
    return [*shown, Line2D([], [], marker="*", ls="", mfc="none", mec=ALARM, mew=1.4, ms=11, label=final)]


def _note(seen: _Seen, factors: Sequence[_Factor]) -> str:
    lines = [counts(seen.runs)]
    if seen.loss != seen.y:
        lines[0] += f"; all are shown at their {seen.words}, where every trial was measured"
    lines.append("surface: thin-plate spline, smoothing by 5-fold cross-validation, within the hull of the trials")
    if len(factors) > 2:
        lines[-1] += ";\nthe other factors vary from trial to trial"
    lines.append("line in a slice: median in bins of equal count; trials above the axis stand at its upper edge")
    if any(not factor.is_number for factor in factors):
        lines.append("line at a choice: its median; trials of one choice are spread sideways")
    return "\n".join(lines)


def _pruned(runs: pd.DataFrame) -> "pd.Series[bool]":
    return runs["status"].eq("pruned") if "status" in runs.columns else pd.Series(False, index=runs.index)


def _label(name: str) -> str:
    return _leaf(name) if label(name) == name else label(name)


def _leaf(name: str) -> str:
    return name.removesuffix(".kind").rpartition(".")[2]


def _say(value: Any) -> str:
    return human(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
