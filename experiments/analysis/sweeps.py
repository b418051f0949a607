"""The figures of one- and two-factor sweeps: loss against a factor, learning-rate basins, heat maps."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from experiments.analysis.axes import (
    ALARM,
    HUE,
    VIRIDIS,
    counts,
    done,
    entropy_line,
    label,
    mark_diverged,
    palette,
    place,
    results_of,
    true_entropy,
)
from experiments.analysis.columns import column, diverged
from experiments.analysis.contract import figure
from experiments.analysis.layout import Sizes
from experiments.analysis.ticks import ValueTicks, alike, values_axis
from nanogpt.config import UserError


@figure
def loss_vs(df: pd.DataFrame, ax: Axes | None = None, *, x: str, hue: str | None = None, y: str = "val_loss") -> Axes:
    """Final loss against one factor: a dot per run, a line through the means over seeds, bars their deviation."""
    return _factor_figure(df, x, hue, y, "loss_vs", False, ax)


@figure
def lr_basin(
    df: pd.DataFrame, ax: Axes | None = None, *, x: str = "learning_rate", hue: str | None = HUE, y: str = "val_loss"
) -> Axes:
    """Loss against learning rate (log 2), one line per `hue` value (default: per size), the best of each starred."""
    return _factor_figure(df, x, hue, y, "lr_basin", True, ax)


def _factor_figure(
    runs: pd.DataFrame, x: str, hue: str | None, y: str, name: str, mark_best: bool, ax: Axes | None
) -> Axes:
    x, good = column(runs, x, name), results_of(runs, y, name)
    y = column(runs, y, name)
    if runs[x].isna().all():
        raise UserError(f"{name}: no run has a {x}")
    colours = palette(runs, hue)
    by = f", by {label(colours.name).partition(' (')[0]}" if colours.name is not None else ""
    _, axes = place(ax, f"{label(y).partition(' (')[0].capitalize()} against {label(x).partition(' (')[0]}{by}")
    groups = good.groupby(colours.name, sort=True) if colours.name is not None else [(None, good)]
    for value, part in groups:
        _mean_line(axes, part, x, y, colours.colour(value), mark_best)
    handles = [*colours.handles(axes), *mark_diverged(axes, runs, x)]
    floor, low, high = true_entropy(runs, y), good[y].min(), good[y].max()
    near = floor is not None and low - floor <= high - low
    if near:
        handles += entropy_line(axes, runs, y)
    if pd.api.types.is_numeric_dtype(runs[x]):
        values_axis(axes, runs[x].dropna())
    axes.set(xlabel=label(x), ylabel=label(y))
    repeats = good.groupby([x, *([colours.name] if colours.name is not None else [])])[y].count()
    note = counts(runs) + (
        "; line: mean, bar: sd over the runs of a point" if repeats.max() > 1 else "; one run per point"
    )
    note += "; star: best" if mark_best else ""
    if floor is not None and not near:
        # Drawn in, it would squeeze the differences that the figure is about into its upper edge.
        note += f"; true entropy of the data {floor:.3f}, below the axis"
    return done(axes, ax, note, handles)


def _mean_line(axes: Axes, part: pd.DataFrame, x: str, y: str, colour: object, mark_best: bool) -> None:
    """Means with sd bars, every run as a faint dot behind them, and a star on the lowest mean when asked."""
    stats = part.groupby(x)[y].agg(["mean", "std", "count"]).sort_index()
    if (stats["count"] > 1).any():
        axes.plot(part[x], part[y], "o", color=colour, ms=3.5, alpha=0.4, zorder=2)
    means, spread = stats["mean"], stats["std"].fillna(0.0)
    axes.errorbar(stats.index, means, yerr=spread, fmt="o-", color=colour, ms=5.5, lw=1.5, capsize=3, zorder=3)
    if mark_best:
        best = means[means == means.min()]
        axes.plot(best.index, best, "*", color=colour, mec="black", ms=15, zorder=5)


@figure
def loss_heatmap(df: pd.DataFrame, ax: Axes | None = None, *, x: str, rows: str, y: str = "val_loss") -> Axes:
    """Mean final loss for each pair of two factors; the best framed, diverged ones crossed, untried blank."""
    runs = df
    x, rows = column(runs, x, "loss_heatmap"), column(runs, rows, "loss_heatmap")
    good = results_of(runs, y, "loss_heatmap")
    y = column(runs, y, "loss_heatmap")
    columns, lines = (sorted(runs[name].dropna().unique().tolist()) for name in (x, rows))
    means = good.pivot_table(index=rows, columns=x, values=y, aggfunc="mean").reindex(index=lines, columns=columns)
    names = [label(name).partition(" (")[0] for name in (y, x, rows)]
    title = f"{names[0].capitalize()} over {names[1]} and {names[2]}"
    _, axes = place(ax, title, 1.1 * len(columns) + 3, 0.8 * len(lines) + 2)
    axes.grid(False)
    axes.imshow(means.to_numpy(dtype=float), cmap=VIRIDIS.reversed(), origin="lower", aspect="auto")
    _cell_texts(axes, means)
    lost = runs[diverged(runs)]
    for _, run in lost.iterrows():
        _cross(axes, columns.index(run[x]), lines.index(run[rows]))
    _name_cells(axes, columns, "x")
    _name_cells(axes, lines, "y")
    axes.set(xlabel=label(x), ylabel=label(rows))
    note = counts(runs) + "; framed: lowest loss" + ("; cross: a run diverged" if len(lost) else "")
    return done(axes, ax, note)


def _name_cells(axes: Axes, values: list[object], which: str) -> None:
    """The value of each column or row, or of every second where all would be crowded."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    names = alike(numbers) if len(numbers) == len(values) else [str(value) for value in values]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(ValueTicks(range(len(names)), which))
    axis.set_major_formatter(FuncFormatter(lambda at, _: names[round(at)] if 0 <= at < len(names) else ""))


def _cell_texts(axes: Axes, means: pd.DataFrame) -> None:
    """The number in every cell, light on dark and dark on light, and a frame around the lowest."""
    values = means.to_numpy(dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    size = Sizes.of(axes).tick
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value > low + 0.45 * (high - low)
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=size, color="white" if dark else "black")
    i, j = np.unravel_index(int(np.nanargmin(values)), values.shape)
    axes.add_patch(Rectangle((float(j) - 0.5, float(i) - 0.5), 1, 1, fill=False, ec=ALARM, lw=2.5, zorder=5))


def _cross(axes: Axes, j: int, i: int) -> None:
    """A cross through one cell."""
    for ends in ((-0.35, 0.35), (0.35, -0.35)):
        axes.plot([j - 0.35, j + 0.35], [i + ends[0], i + ends[1]], color=ALARM, lw=2)
