"""The corner plot of a fit: the bootstrap draws of every parameter, alone and in pairs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.analysis.axes import ALARM, FAINT, INK, human
from experiments.analysis.fitted import Fit
from nanogpt.config import UserError

BLUE = "#31688e"
WIDE = 4.0  # draws over more than this factor are shown on a logarithmic axis
SHOWN = 0.99  # of the draws along each axis: a few far ones would flatten all others
MOST_DOTS = 1500


def corner(fit: Fit, figure: Figure | None = None, names: list[str] | None = None) -> Figure:
    """Histograms of the draws down the diagonal, pairs below it, the fitted values as lines; returns the figure.

    `names`: the parameters to show, all by default. A long thin cloud is a combination that the data do not pin down.
    UserError for a fit without a bootstrap.
    """
    if not len(fit.draws):
        raise UserError("corner: the fit has no bootstrap draws to show")
    shown = list(fit.params) if names is None else names
    size = len(shown)
    figure = figure or Figure(figsize=(1.75 * size + 1.0, 1.75 * size + 0.9), layout="constrained", facecolor="white")
    grid = figure.subplots(size, size, squeeze=False)
    windows = {name: _window(fit.draws[name], fit.params[name]) for name in shown}
    for (i, j), axes in np.ndenumerate(grid):
        if j > i:
            axes.remove()
        elif i == j:
            _histogram(axes, fit, shown[i], windows[shown[i]])
        else:
            _pair(axes, fit, shown[j], shown[i], windows)
        if j <= i:
            _label(axes, shown[j], shown[i], last=i == size - 1, first=j == 0 and i > 0)
    inside = np.logical_and.reduce([fit.draws[name].between(*windows[name][:2]).to_numpy() for name in shown])
    hidden = int(len(fit.draws) - inside.sum())
    figure.suptitle(f"{len(fit.draws)} {fit.resample}-bootstrap draws of the {fit.law.title}", x=0.01, ha="left",
                    fontsize=11, color=INK)  # fmt: skip
    note = f"orange: the law of all {len(fit.points)} runs; dashed: 95 % interval; r: rank correlation"
    note += f"; {hidden} draws lie outside the axes" if hidden else ""
    figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, ha="left")
    return figure


def _window(draws: "pd.Series[float]", value: float) -> tuple[float, float, bool]:
    """Ends of the axis and whether it is logarithmic."""
    tail = (1 - SHOWN) / 2
    low, high = (float(end) for end in np.quantile(draws, [tail, 1 - tail]))
    low, high = min(low, value), max(high, value)
    log = low > 0 and high / low > WIDE
    if log:
        pad = (high / low) ** 0.06
        return low / pad, high * pad, True
    pad = 0.06 * (high - low) or abs(value) * 0.01 or 1.0
    return low - pad, high + pad, False


def _histogram(axes: Axes, fit: Fit, name: str, window: tuple[float, float, bool]) -> None:
    low, high, log = window
    bins = (np.geomspace if log else np.linspace)(low, high, 31).tolist()
    axes.hist(fit.draws[name], bins=bins, color=BLUE, alpha=0.55, histtype="stepfilled", lw=0)
    axes.axvline(fit.params[name], color=ALARM, lw=1.4)
    for end in np.quantile(fit.draws[name], [0.025, 0.975]).tolist():
        axes.axvline(end, color=INK, lw=0.9, ls="--")
    axes.set_title(f"{name} = {human(fit.params[name])}", fontsize=8.5, color=INK)
    axes.set_yticks([])
    _scale(axes, "x", window)


def _pair(axes: Axes, fit: Fit, x: str, y: str, windows: dict[str, tuple[float, float, bool]]) -> None:
    """Every draw a dot (at most 1500 of them), and the rank correlation of all."""
    dots = fit.draws.iloc[:: -(-len(fit.draws) // MOST_DOTS)]
    axes.plot(dots[x], dots[y], ".", ms=2.2, color=BLUE, alpha=0.35, mew=0, rasterized=True)
    axes.plot(fit.params[x], fit.params[y], "+", color=ALARM, ms=9, mew=1.6, zorder=4)
    correlation = fit.draws[x].rank().corr(fit.draws[y].rank())
    above = correlation >= 0
    axes.text(0.05 if above else 0.95, 0.95, f"r {correlation:.2f}", transform=axes.transAxes, fontsize=7.5, va="top",
              ha="left" if above else "right", color=INK)  # fmt: skip
    _scale(axes, "x", windows[x])
    _scale(axes, "y", windows[y])


def _scale(axes: Axes, which: str, window: tuple[float, float, bool]) -> None:
    low, high, log = window
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(numticks=4) if high / low > 50 else LogLocator(subs=(1.0, 3.0), numticks=5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def _label(axes: Axes, x: str, y: str, last: bool, first: bool) -> None:
    """Names and ticks along the outer edges only."""
    axes.tick_params(labelsize=7, labelbottom=last, labelleft=first)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if last:
        axes.set_xlabel(x, fontsize=9)
        axes.tick_params(axis="x", rotation=30)
    if first:
        axes.set_ylabel(y, fontsize=9)
