"""The figure of optima: loss over the swept factor as one basin per size, a panel per parametrization, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.analysis.axes import ALARM, HUE, INK, Palette, counts, done, label, palette, place
from experiments.analysis.columns import diverged
from experiments.analysis.contract import figure
from experiments.analysis.optimum import Estimate, Optima, Panel, SizeOptimum, find_optima
from experiments.analysis.panels import divide
from experiments.analysis.ticks import human, values_axis
from experiments.analysis.transfer import number_text
from experiments.analysis.where import select
from nanogpt.config import UserError

# How far above the fitted points the axis reaches, in spans of those points: walls far from the optimum hide it.
HEADROOM = 0.6


@figure
def lr_transfer(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    optima: Optima | None = None,
    x: str = "learning_rate",
    per: str = HUE,
    panel: str | None = None,
    y: str = "val_loss",
) -> Axes:
    """Every run a faint dot, the means of each size a line, its fitted optimum a diamond with its interval, and the
    base's optimum as a vertical line through the panel: where diamonds leave the line, the optimum does not transfer.

    `optima`: what `find_optima` made of the table; by default it is asked for `x`, `per` size, in every `panel`.
    """
    if optima is None:
        optima = find_optima(df, x, per, panel, y)
    if not any(len(size.points.dropna(subset=["mean"])) for each in optima.panels for size in each.sizes):
        raise UserError("lr_transfer: no value was finished by every seed, so there is no basin to draw")
    runs = df[select(df, optima.where)] if optima.where else df
    number = len(optima.panels)
    title = f"Where {_words(optima.y)} is lowest over {_words(optima.x)}, by {_words(optima.per)}"
    _, axes = place(ax, title, max(3.1 * number + 1.4, 5.6), 5.4)
    panels = divide(axes, 1, number, gap=(12.0, 0.0), head=30.0)
    colours = palette(runs, optima.per)
    for each, found in zip(panels, optima.panels, strict=True):
        _draw_panel(each, runs, optima, found, colours)
        each.set(xlabel=label(optima.x), ylabel=label(optima.y) if each is panels[0] else "")
        _ticks(each, runs[optima.x])
        _look_at_the_basins(each, optima)
        each.tick_params(labelleft=each is panels[0])
        done(each, axes, "")
    handles = [*_handles(axes, optima, colours), *_mark_lost(panels, runs, optima)]
    return done(axes, ax, _note(runs, optima), handles)


def _draw_panel(axes: Axes, runs: pd.DataFrame, optima: Optima, panel: Panel, colours: Palette) -> None:
    place(axes, _title(optima, panel))
    axes.set_xscale("log", base=2)
    rows = runs if optima.panel is None else runs[runs[optima.panel] == panel.value]
    for size in panel.sizes:
        colour = colours.colour(size.size)
        dots = rows[rows[optima.per] == size.size]
        axes.plot(dots[optima.x], dots[optima.y], "o", color=colour, ms=3, alpha=0.35, zorder=2)
        axes.plot(size.points["x"], size.points["mean"], "-", color=colour, lw=1.6, zorder=3)
        _mark_optimum(axes, size, colour)
        if size.size == panel.base and isinstance(size.optimum, Estimate):
            axes.axvline(2**size.optimum.value, color=INK, lw=1.0, ls=(0, (4, 2)), zorder=1)


def _mark_optimum(axes: Axes, size: SizeOptimum, colour: Any) -> None:
    """The fitted parabola, dotted, and a diamond where its minimum lies, at the loss read between the means; the bar is
    the interval over seeds."""
    if not isinstance(size.optimum, Estimate):
        return
    place = size.optimum
    fitted = size.points[size.points["fitted"]]["x"]
    steps = np.linspace(np.log2(fitted.min()), np.log2(fitted.max()), 60)
    parabola = size.level + size.curvature * (steps - place.value) ** 2
    axes.plot(2**steps, parabola, ":", color=colour, lw=1.0, zorder=3)
    if place.has_interval:
        ends = [2**place.lower, 2**place.upper]
        axes.plot(ends, [size.loss] * 2, "-", color="white", lw=4.5, zorder=4, solid_capstyle="butt")
        axes.plot(ends, [size.loss] * 2, "|-", color=colour, lw=2.2, ms=8, mew=1.6, zorder=5, clip_on=True)
    axes.plot([2**place.value], [size.loss], "D", color=colour, mec="black", mew=0.9, ms=7, zorder=6)


def _title(optima: Optima, panel: Panel) -> str:
    """What the panel shows, with the number that answers the question."""
    head = f"{panel.value}: " if optima.panel is not None else ""
    last = panel.sizes[-1] if panel.sizes[-1].size != panel.base else panel.sizes[0]
    leaf = optima.per.rpartition(".")[2]
    span = f"from {leaf} {_size(panel.base)} to {_size(last.size)}"
    if isinstance(last.drift, Estimate):
        return f"{head}{number_text(last.drift, signed=True)} octaves {span}"
    return f"{head}drift not known {span}"


def _handles(axes: Axes, optima: Optima, colours: Palette) -> list[Line2D]:
    grey = "#777777"
    marks = [
        Line2D([], [], color=grey, ls=":", lw=1.0, label="fitted parabola"),
        Line2D([], [], color=grey, marker="D", mec="black", ms=5, ls="-", lw=2, label="its optimum, 95 % interval"),
        Line2D([], [], color=INK, lw=1.0, ls=(0, (4, 2)), label=f"optimum of {_size(optima.panels[0].base)}"),
    ]
    return [*colours.handles(axes, marker=""), *marks]


def _size(value: Any) -> str:
    return human(float(value)) if isinstance(value, int | float) and value >= 1e4 else str(value)


def _ticks(axes: Axes, values: "pd.Series[float]") -> None:
    """Ticks at values that were tried, as many as can be read."""
    tried = values.dropna().astype(float)
    axes.set_xlim(tried.min() / 2**0.4, tried.max() * 2**0.4)
    values_axis(axes, tried)


def _look_at_the_basins(axes: Axes, optima: Optima) -> None:
    """The shared axis from the lowest mean or minimum to somewhat above what was fitted."""
    sizes = [size for panel in optima.panels for size in panel.sizes]
    points = pd.concat([size.points for size in sizes]).dropna(subset=["mean"])
    fitted = points[points["fitted"]] if points["fitted"].any() else points
    low = float(np.nanmin([points["mean"].min(), *(size.level for size in sizes)]))
    high = float(fitted["mean"].max())
    span = max(high - low, 1e-6)
    axes.set_ylim(low - 0.08 * span, min(float(points["mean"].max()), high + HEADROOM * span) + 0.04 * span)


def _mark_lost(axes: Sequence[Axes], runs: pd.DataFrame, optima: Optima) -> list[Line2D]:
    """Crosses on the top edge of each panel where a run diverged. Returns the legend's entry."""
    lost = runs[diverged(runs)]
    for each, panel in zip(axes, optima.panels, strict=True):
        here = lost if optima.panel is None else lost[lost[optima.panel] == panel.value]
        if len(here):
            top = each.get_xaxis_transform()
            each.plot(here[optima.x], np.full(len(here), 1.0), "X", color=ALARM, ms=7, transform=top, clip_on=False)
    name = f"diverged ({len(lost)})"
    return [Line2D([], [], color=ALARM, marker="X", ls="", ms=7, label=name)] if len(lost) else []


def _note(runs: pd.DataFrame, optima: Optima) -> str:
    several = any(len(panel.seeds) > 1 for panel in optima.panels) and optima.bootstrap
    bar = f"interval: {optima.bootstrap} bootstrap resamples of seeds, widened by Student's t"
    lines = [
        f"{counts(runs)}; dot: a run, line: mean over seeds; higher losses lie above the axis",
        f"parabola: through the means within {optima.window} grid steps of the lowest",
        bar if several else "no intervals: they need two seeds and a bootstrap",
    ]
    wide = len(optima.panels) > 2
    return f"{lines[0]}\n{lines[1]}{'; ' if wide else chr(10)}{lines[2]}"


def _words(name: str) -> str:
    return label(name).partition(" (")[0]
