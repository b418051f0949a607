"""The corner plot: the draws of every parameter of a fit, alone and in pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.analysis.axes import ALARM, BLUE, FAINT, INK, done, place
from experiments.analysis.columns import column
from experiments.analysis.contract import figure
from experiments.analysis.fitted import Fit
from experiments.analysis.layout import Sizes
from experiments.analysis.panels import divide
from experiments.analysis.ticks import human
from nanogpt.config import UserError

WIDE = 4.0  # draws over more than this factor are shown on a logarithmic axis
SHOWN = 0.99  # of the draws along each axis: a few far ones would flatten all others
MOST_DOTS = 1500


@figure
def corner(
    df: pd.DataFrame, ax: Axes | None = None, *, fit: Fit | None = None, names: Sequence[str] | None = None
) -> Axes:
    """Histograms of draws down the diagonal, pairs of them below it. `df`: a row per draw and a column per parameter,
    such as `fit.draws`; with `fit` its values are drawn as lines, and else the medians of the draws.

    `names`: the parameters to show, all by default. A long thin cloud is a combination that the data do not pin down.
    UserError for a parameter without a column of finite numbers.
    """
    draws = _numbers(df, list(df.columns if fit is None else fit.params) if names is None else list(names))
    shown, size = list(draws.columns), draws.shape[1]
    values = {name: float(fit.params[name] if fit is not None else draws[name].median()) for name in shown}
    windows = {name: _window(draws[name], values[name]) for name in shown}
    what = f"{len(draws)} {fit.resample}-bootstrap draws of the {fit.law.title}" if fit else f"{len(draws)} draws"
    _, axes = place(ax, what, 1.75 * size + 1.0, 1.75 * size + 0.9)
    small = Sizes.of(axes)
    panels = np.reshape(np.array(divide(axes, size, size, gap=(7.0, 14.0)), dtype=object), (size, size))
    for (i, j), panel in np.ndenumerate(panels):
        if j > i:
            panel.remove()
            continue
        if i == j:
            _histogram(panel, draws[shown[i]], values[shown[i]], windows[shown[i]], small)
        else:
            _pair(panel, draws[[shown[j], shown[i]]], values, windows, small)
        _label(panel, shown[j], shown[i], i == size - 1, j == 0 and i > 0, small)
    hidden = len(draws) - int(
        np.logical_and.reduce([draws[name].between(*windows[name][:2]).to_numpy() for name in shown]).sum()
    )
    note = "orange: " + (f"the law of all {len(fit.points)} runs" if fit else "medians")
    note += "; dashed: 95 % interval; r: rank correlation" + (f"; {hidden} draws lie outside the axes" * bool(hidden))
    handles = [Line2D([], [], color=ALARM, lw=1.4, label="fitted" if fit else "median"),
               Line2D([], [], color=INK, lw=0.9, ls="--", label="95 % of the draws")]  # fmt: skip
    return done(axes, ax, note, handles)


def draws_of(fit: Fit) -> pd.DataFrame:
    """The draws of a fit; UserError where it was made without a bootstrap."""
    if not len(fit.draws):
        raise UserError("corner: the fit has no bootstrap draws to show")
    return fit.draws


def _numbers(df: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    if not names:
        raise UserError("corner: names is empty; give at least one parameter")
    draws = pd.DataFrame({name: pd.to_numeric(df[column(df, name, "corner")], errors="coerce") for name in names})
    for name in names:
        if not np.isfinite(draws[name].to_numpy(dtype=float)).all():
            raise UserError(f"corner: column {name} holds something else than finite numbers; choose others by names=")
    return draws


def _window(draws: "pd.Series[float]", value: float) -> "Window":
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


Window = tuple[float, float, bool]


def _histogram(axes: Axes, draws: "pd.Series[float]", value: float, window: Window, small: Sizes) -> None:
    low, high, log = window
    bins = (np.geomspace if log else np.linspace)(low, high, 31).tolist()
    axes.hist(draws, bins=bins, color=BLUE, alpha=0.55, histtype="stepfilled", lw=0)
    axes.axvline(value, color=ALARM, lw=1.4)
    for end in np.quantile(draws, [0.025, 0.975]).tolist():
        axes.axvline(end, color=INK, lw=0.9, ls="--")
    axes.set_title(f"{draws.name} = {human(value)}", fontsize=small.tick, color=INK, pad=2.0)
    axes.set_yticks([])
    _scale(axes, "x", window)


def _pair(axes: Axes, draws: pd.DataFrame, values: dict[str, float], windows: dict[str, Window], small: Sizes) -> None:
    """Every draw a dot (at most 1500 of them), and the rank correlation of all."""
    x, y = draws.columns
    dots = draws.iloc[:: -(-len(draws) // MOST_DOTS)]
    axes.plot(dots[x], dots[y], ".", ms=2.2, color=BLUE, alpha=0.35, mew=0, rasterized=True)
    axes.plot(values[x], values[y], "+", color=ALARM, ms=9, mew=1.6, zorder=4)
    correlation = draws[x].rank().corr(draws[y].rank())
    above = not correlation < 0
    axes.text(0.05 if above else 0.95, 0.95, f"r {correlation:.2f}", transform=axes.transAxes, fontsize=small.tick - 1,
              va="top", ha="left" if above else "right", color=INK)  # fmt: skip
    _scale(axes, "x", windows[x])
    _scale(axes, "y", windows[y])


def _scale(axes: Axes, which: str, window: Window) -> None:
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


def _label(axes: Axes, x: str, y: str, last: bool, first: bool, small: Sizes) -> None:
    """Names and ticks along the outer edges only."""
    axes.tick_params(labelsize=small.tick - 1, labelbottom=last, labelleft=first)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if last:
        axes.set_xlabel(x, fontsize=small.label)
        axes.tick_params(axis="x", rotation=30)
    if first:
        axes.set_ylabel(y, fontsize=small.label)
