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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments.analysis.axes import ALARM, FAINT, INK, counts, human, label, log_axis, results_of
from experiments.analysis.columns import column, diverged, finished
from experiments.analysis.influence import fitted_surface, influence, inside_hull, order_of_merit
from experiments.analysis.searched import Searched
from nanogpt.config import UserError

MOST_SLICES = 6
MOST_SURFACES = 3
COLUMNS = 3
COLOURS = "viridis_r"
GRID = 80
WORST_SHOWN = 0.85  # quantile of the completed trials' losses at which the colours end


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


def response_surface(
    runs: pd.DataFrame, searched: Searched | None, y: str = "val_loss", names: Sequence[str] = ()
) -> Figure:
    """Pairs of the most influential factors as an interpolated surface with every trial on it, and one slice per factor.

    `names` chooses the two factors of the surface. Where a grid stands beside the search, the surface is drawn for each
    of its points. Raises UserError when the study is no search or has no finished trial.
    """
    if searched is None:
        raise UserError("response_surface: the study is no search; it has no sweep.space")
    good = results_of(runs, y, "response_surface")
    y = column(runs, y, "response_surface")
    factors = _factors(runs, searched, y)
    norm = Normalize(float(good[y].min()), max(float(good[y].quantile(WORST_SHOWN)), float(good[y].min()) + 1e-9))
    surfaces = _surfaces(runs, factors, searched, names)
    slices = factors[:MOST_SLICES]
    columns = min(COLUMNS, max(len(surfaces), len(slices)))
    rows = -(-len(surfaces) // columns) + -(-len(slices) // columns)
    page = _Page(columns, rows)
    for index, (part, pair, title) in enumerate(surfaces):
        _surface(page.panel(index), part, pair, y, norm, title)
    first = -(-len(surfaces) // columns) * columns
    for index, factor in enumerate(slices):
        _slice(page.panel(first + index), runs, factor, y, norm)
    page.write(f"{label(y).partition(' (')[0].capitalize()} over the space that was searched", _note(runs, factors))
    page.colour_bar(norm, label(y))
    page.legend(_legend(runs))
    return page.figure


class _Page:
    """Panels in rows at fixed sizes, room at the right for the colours and below for the note, all in inches."""

    SIDE, ACROSS, DOWN, LEFT, RIGHT, TOP, BOTTOM = 2.7, 0.85, 0.95, 0.8, 1.15, 0.95, 1.35

    def __init__(self, columns: int, rows: int) -> None:
        self._columns = columns
        self.width = self.LEFT + columns * self.SIDE + (columns - 1) * self.ACROSS + self.RIGHT
        self.height = self.TOP + rows * self.SIDE + (rows - 1) * self.DOWN + self.BOTTOM
        self.figure = Figure(figsize=(max(self.width, 8.0), self.height), facecolor="white")
        self.width = max(self.width, 8.0)

    def panel(self, index: int) -> Axes:
        row, place = divmod(index, self._columns)
        left = self.LEFT + place * (self.SIDE + self.ACROSS)
        bottom = self.height - self.TOP - self.SIDE - row * (self.SIDE + self.DOWN)
        return self.figure.add_axes(self._box(left, bottom, self.SIDE, self.SIDE))

    def _box(self, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
        return left / self.width, bottom / self.height, width / self.width, height / self.height

    def write(self, title: str, note: str) -> None:
        self.figure.suptitle(title, x=0.35 / self.width, y=1 - 0.18 / self.height, ha="left", va="top", fontsize=12)
        self.figure.supxlabel(note, x=0.35 / self.width, y=0.12 / self.height, ha="left", va="bottom", fontsize=8,
                              color="#555555")  # fmt: skip

    def colour_bar(self, norm: Normalize, text: str) -> None:
        left = self.LEFT + self._columns * (self.SIDE + self.ACROSS) - self.ACROSS + 0.2
        bottom = self.height - self.TOP - self.SIDE
        place = self.figure.add_axes(self._box(left, bottom, 0.13, self.SIDE))
        self.figure.colorbar(ScalarMappable(norm=norm, cmap=COLOURS), cax=place, extend="max", label=text)
        place.tick_params(labelsize=8)
        place.yaxis.label.set_size(9)

    def legend(self, handles: Sequence[Line2D]) -> None:
        self.figure.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=8, frameon=False,
                           bbox_to_anchor=(0.27 / self.width, 1 - 0.36 / self.height))  # fmt: skip


def _factors(runs: pd.DataFrame, searched: Searched, y: str) -> list[_Factor]:
    """The factors of the search that took several values, the most influential first."""
    merit = order_of_merit(runs, y)
    found = []
    for name, scale in searched.scales.items():
        if name in runs.columns and runs[name].map(repr).nunique() > 1:
            numeric = pd.api.types.is_numeric_dtype(runs[name]) and not pd.api.types.is_bool_dtype(runs[name])
            scale = scale if numeric or scale == "choice" else "choice"
            found.append(_Factor(name, scale, influence(runs[name], merit, scale == "choice")))
    if not found:
        raise UserError("response_surface: no factor of the search took two values")
    return sorted(found, key=lambda factor: -factor.share if math.isfinite(factor.share) else 0.0)


_Panel = tuple[pd.DataFrame, tuple[_Factor, _Factor], str]


def _surfaces(runs: pd.DataFrame, factors: Sequence[_Factor], searched: Searched, names: Sequence[str]) -> list[_Panel]:
    """The panels with a surface: pairs of factors, or the first pair at every point of the grid beside the search."""
    numbers = [factor for factor in factors if factor.is_number]
    if names:
        chosen = [column(runs, name, "response_surface") for name in names]
        numbers = [factor for name in chosen for factor in numbers if factor.name == name]
    pairs = list(itertools.combinations(numbers[:3], 2))
    cells = [name for name in searched.cells if name in runs.columns]
    if not cells or not pairs:
        return [(runs, pair, "") for pair in pairs[:MOST_SURFACES]]
    groups = runs.groupby(cells if len(cells) > 1 else cells[0], sort=True, dropna=False)
    said = [
        (group, ", ".join(f"{c.rpartition('.')[2]} = {_say(group[c].iloc[0])}" for c in cells)) for _, group in groups
    ]
    return [(group, pairs[0], title) for group, title in said[: 2 * MOST_SURFACES]]


def _surface(
    axes: Axes, runs: pd.DataFrame, pair: tuple[_Factor, _Factor], y: str, norm: Normalize, title: str
) -> None:
    """One pair: the spline within the hull of its trials, and the trials in the colours of their own losses."""
    x, v = pair
    axes.set_title(title or f"{_leaf(x.name)} and {_leaf(v.name)}", loc="left", fontsize=9, color=INK)
    usable = runs[(finished(runs) | _pruned(runs)) & runs[y].notna()]
    limits = [(float(runs[f.name].min()), float(runs[f.name].max())) for f in pair]
    if all(low < high for low, high in limits) and len(usable):
        points = np.column_stack([f.unit(usable[f.name], *ends) for f, ends in zip(pair, limits, strict=True)])
        # Far above the colours' end nothing is shown, and a steep wall would make the spline ring.
        cap = norm.vmax + 0.25 * (norm.vmax - norm.vmin)  # type: ignore[operator]
        surface = fitted_surface(points, np.minimum(usable[y].to_numpy(dtype=float), cap))
        if surface is not None:
            side = np.linspace(0, 1, GRID)
            mesh = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
            heights = np.where(inside_hull(points, mesh), surface(mesh), np.nan).reshape(GRID, GRID)
            across, up = (_from_unit(f, side, *ends) for f, ends in zip(pair, limits, strict=True))
            levels = np.linspace(float(norm.vmin or 0.0), float(norm.vmax or 0.0), 13)
            axes.contourf(across, up, heights, levels=levels, cmap=COLOURS, extend="both", alpha=0.75)
    _trials(axes, runs, x.name, v.name, y, norm)
    for factor, which, ends in ((x, "x", limits[0]), (v, "y", limits[1])):
        _scale(axes, factor, which, ends)
    axes.set(xlabel=_label(x.name), ylabel=_label(v.name))
    _plain(axes)


def _from_unit(factor: _Factor, side: np.ndarray, low: float, high: float) -> np.ndarray:
    return low * (high / low) ** side if factor.scale == "log" else low + (high - low) * side


def _trials(axes: Axes, runs: pd.DataFrame, x: str, v: str, y: str, norm: Normalize) -> None:
    good, pruned, lost = runs[finished(runs)], runs[_pruned(runs)], runs[diverged(runs)]
    axes.plot(pruned[x], pruned[v], "v", ms=5, mfc="white", mec=FAINT, mew=1.0, ls="", zorder=4)
    axes.plot(lost[x], lost[v], "X", ms=7, color=ALARM, ls="", zorder=5)
    axes.scatter(good[x], good[v], c=good[y], cmap=COLOURS, norm=norm, s=38, edgecolors=INK, linewidths=0.8, zorder=6)
    if len(good):
        best = good.loc[good[y].idxmin()]
        axes.plot([best[x]], [best[v]], "*", ms=15, mfc="none", mec=ALARM, mew=1.6, zorder=7)


def _slice(axes: Axes, runs: pd.DataFrame, factor: _Factor, y: str, norm: Normalize) -> None:
    """Loss against one factor: every trial, those beyond the axis at its upper edge."""
    good, pruned, lost = runs[finished(runs)], runs[_pruned(runs)], runs[diverged(runs)]
    losses = good[y].astype(float)
    low, high = float(losses.min()), float(losses.quantile(0.95))
    pad = max(high - low, 1e-3 * abs(low) + 1e-12)
    bottom, top = low - 0.12 * pad, high + 0.45 * pad
    place = pd.Series(_positions(runs, factor), dtype=float)
    axes.plot(place[pruned.index], pruned[y].astype(float).clip(upper=top), "v", ms=5, mfc="white", mec=FAINT,
              clip_on=False, zorder=3)  # fmt: skip
    axes.plot(place[lost.index], np.full(len(lost), top), "X", ms=7, color=ALARM, clip_on=False, zorder=5)
    axes.scatter(place[good.index], losses.clip(upper=top), c=good[y], cmap=COLOURS, norm=norm, s=34, edgecolors=INK,
                 linewidths=0.8, zorder=6, clip_on=False)  # fmt: skip
    _median_line(axes, place[good.index], losses, factor)
    best = losses.idxmin()
    axes.plot([place[best]], [losses[best]], "*", ms=15, mfc="none", mec=ALARM, mew=1.6, zorder=7)
    axes.set_ylim(bottom, top)
    if factor.is_number:
        _scale(axes, factor, "x", (float(runs[factor.name].min()), float(runs[factor.name].max())))
    else:
        choices = _choices(runs, factor)
        axes.set_xticks(range(len(choices)), [_say(choice) for choice in choices], fontsize=8)
        axes.set_xlim(-0.6, len(choices) - 0.4)
    share = f"{factor.share:.0%} of the rank variance" if math.isfinite(factor.share) else "too few trials to weigh"
    axes.set_title(f"{_leaf(factor.name)}: {share}", loc="left", fontsize=9, color=INK)
    axes.set(xlabel=_label(factor.name), ylabel=label(y).replace("validation", "val."))
    _plain(axes)


def _choices(runs: pd.DataFrame, factor: _Factor) -> list[Any]:
    values = runs[factor.name].dropna().unique().tolist()
    return sorted(values) if all(isinstance(value, int | float) for value in values) else sorted(values, key=str)


def _positions(runs: pd.DataFrame, factor: _Factor) -> dict[Any, float]:
    """Where each run stands along a slice; choices side by side, spread a little so that equal ones do not hide."""
    if factor.is_number:
        return {index: float(value) for index, value in runs[factor.name].items()}
    choices = _choices(runs, factor)
    spread = itertools.cycle((0.0, 0.12, -0.12, 0.24, -0.24))
    return {index: choices.index(value) + next(spread) for index, value in runs[factor.name].items()}


def _median_line(axes: Axes, place: "pd.Series[float]", losses: "pd.Series[float]", factor: _Factor) -> None:
    """Medians of the completed trials in bins of equal count, or of each choice."""
    if len(losses) < 8:
        return
    bins = place.round() if not factor.is_number else pd.qcut(place, int(np.clip(len(place) // 4, 2, 6)), labels=False,
                                                              duplicates="drop")  # fmt: skip
    centres, medians = place.groupby(bins).median(), losses.groupby(bins).median()
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
        if high / low > 30:  # a panel is narrow: few ticks in each decade
            subs = (1.0, 3.0) if high / low < 2e3 else (1.0,)
            (axes.xaxis if which == "x" else axes.yaxis).set_major_locator(LogLocator(subs=subs, numticks=9))
    else:
        wide = margin * (high - low)
        (axes.set_xlim if which == "x" else axes.set_ylim)(low - wide, high + wide)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)


def _legend(runs: pd.DataFrame) -> list[Line2D]:
    """Only what the figure holds."""
    shown = [
        Line2D(
            [], [], marker="o", ls="", mfc="#6ccd5a", mec=INK, ms=6, label=f"completed ({int(finished(runs).sum())})"
        ),
        Line2D([], [], marker="*", ls="", mfc="none", mec=ALARM, mew=1.4, ms=11, label="lowest loss"),
    ]
    pruned, lost = int(_pruned(runs).sum()), int(diverged(runs).sum())
    if pruned:
        shown.append(Line2D([], [], marker="v", ls="", mfc="white", mec=FAINT, ms=5, label=f"pruned ({pruned})"))
    if lost:
        shown.append(Line2D([], [], marker="X", ls="", color=ALARM, ms=6, label=f"diverged ({lost})"))
    return shown


def _note(runs: pd.DataFrame, factors: Sequence[_Factor]) -> str:
    lines = [f"{counts(runs)}; line in a slice: median in bins of equal count",
             "surface: thin-plate spline in the two factors, smoothing by 5-fold cross-validation, within the hull"]  # fmt: skip
    if len(factors) > 2:
        lines.append("of the trials; the other factors vary from trial to trial")
    lines.append("trials above a slice's axis stand at its upper edge")
    if _pruned(runs).any():
        lines[-1] += "; a pruned one at the loss at which it was ended"
    return "\n".join(lines)


def _pruned(runs: pd.DataFrame) -> "pd.Series[bool]":
    return runs["status"].eq("pruned") if "status" in runs.columns else pd.Series(False, index=runs.index)


def _label(name: str) -> str:
    return _leaf(name) if label(name) == name else label(name)


def _leaf(name: str) -> str:
    return name.removesuffix(".kind").rpartition(".")[2]


def _say(value: Any) -> str:
    return human(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
