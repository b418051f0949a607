"""The figure of optima: loss over the swept factor as one basin per size, a panel per parametrization, side by side."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.analysis.axes import ALARM, INK, Palette, counts, human, label, palette
from experiments.analysis.columns import diverged
from experiments.analysis.optimum import Estimate, Optima, Panel, SizeOptimum
from experiments.analysis.transfer import number_text
from experiments.analysis.where import select
from nanogpt.config import UserError

MOST_TICKS = 6
# How far above the fitted points the axis reaches, in spans of those points: walls far from the optimum hide it.
HEADROOM = 0.6


def lr_transfer(runs: pd.DataFrame, optima: Optima) -> Figure:
    """Every run a faint dot, the means of each size a line, its fitted optimum a diamond with its interval, and the
    base's optimum as a vertical line through the panel: where diamonds leave the line, the optimum does not transfer.
    """
    if not any(len(size.points.dropna(subset=["mean"])) for panel in optima.panels for size in panel.sizes):
        raise UserError("lr_transfer: no value was finished by every seed, so there is no basin to draw")
    runs = runs[select(runs, optima.where)] if optima.where else runs
    number = len(optima.panels)
    figure = Figure(figsize=(3.1 * number + 2.6, 5.0), layout="constrained", facecolor="white")
    axes = figure.subplots(1, number, sharey=True, squeeze=False)[0]
    colours = palette(runs, optima.per)
    for each, panel in zip(axes, optima.panels, strict=True):
        _draw_panel(each, runs, optima, panel, colours)
        each.set(xlabel=label(optima.x), ylabel=label(optima.y) if each is axes[0] else "")
        _ticks(each, runs[optima.x], MOST_TICKS // (1 + (number > 2)))
    _look_at_the_basins(axes[0], optima)
    lost = _mark_lost(axes, runs, optima)
    handles = [*_handles(optima, colours), *lost]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right upper")
    figure.suptitle(f"Where {_words(optima.y)} is lowest over {_words(optima.x)}, by {_words(optima.per)}",
                    x=0.01, ha="left", fontsize=12, color=INK)  # fmt: skip
    figure.supxlabel(_note(runs, optima), fontsize=8, color="#555555", x=0.01, ha="left")
    return figure


def _draw_panel(axes: Axes, runs: pd.DataFrame, optima: Optima, panel: Panel, colours: Palette) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xscale("log", base=2)
    axes.set_title(_title(optima, panel), loc="left", fontsize=10, color=INK)
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
    if isinstance(last.drift, Estimate):
        return f"{head}{number_text(last.drift, signed=True)} octaves\nfrom {leaf} {panel.base} to {last.size}"
    return f"{head}drift not known\nfrom {leaf} {panel.base} to {last.size}"


def _handles(optima: Optima, colours: Palette) -> list[Line2D]:
    marks = [
        Line2D([], [], color="#777777", ls=":", lw=1.0, label="fitted parabola"),
        Line2D(
            [],
            [],
            color="#777777",
            marker="D",
            mec="black",
            ms=6,
            ls="-",
            lw=2,
            label="its optimum,\n95 % interval",
        ),
        Line2D([], [], color=INK, lw=1.0, ls=(0, (4, 2)), label=f"optimum of {optima.panels[0].base}"),
    ]
    return [*colours.handles(marker=""), *marks]


def _ticks(axes: Axes, values: "pd.Series[float]", most: int) -> None:
    """Ticks at values that were tried, as many as can be read."""
    tried = sorted({float(value) for value in values.dropna()})
    axes.set_xlim(tried[0] / 2**0.4, tried[-1] * 2**0.4)
    axes.xaxis.set_major_locator(FixedLocator(tried[:: -(-len(tried) // most)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))


def _look_at_the_basins(axes: Axes, optima: Optima) -> None:
    """The shared axis from the lowest mean or minimum to somewhat above what was fitted."""
    sizes = [size for panel in optima.panels for size in panel.sizes]
    points = pd.concat([size.points for size in sizes]).dropna(subset=["mean"])
    fitted = points[points["fitted"]] if points["fitted"].any() else points
    low = float(np.nanmin([points["mean"].min(), *(size.level for size in sizes)]))
    high = float(fitted["mean"].max())
    span = max(high - low, 1e-6)
    axes.set_ylim(low - 0.08 * span, min(float(points["mean"].max()), high + HEADROOM * span) + 0.04 * span)


def _mark_lost(axes: "np.ndarray[Any, Any]", runs: pd.DataFrame, optima: Optima) -> list[Line2D]:
    """Crosses on the top edge of each panel where a run diverged. Returns the legend's entry."""
    lost = runs[diverged(runs)]
    for each, panel in zip(axes, optima.panels, strict=True):
        here = lost if optima.panel is None else lost[lost[optima.panel] == panel.value]
        if len(here):
            top = each.get_xaxis_transform()
            each.plot(here[optima.x], np.full(len(here), 1.0), "X", color=ALARM, ms=7, transform=top, clip_on=False)
    name = f"diverged ({len(lost)}), at the top edge"
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
