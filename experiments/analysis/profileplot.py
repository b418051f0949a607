"""The figure of a profile: the deviance of one parameter, its cutoff, and the interval that the cutoff leaves."""

from typing import TYPE_CHECKING

from experiments.analysis.axes import ALARM, FAINT, INK, finish, log_axis, new_figure, plain
from experiments.analysis.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.analysis.fitted import Fit

LINE = "#31688e"


def draw_profile(profile: Profile, ax: "Axes | None" = None) -> "Axes":
    """Draw `profile` on `ax` (default: a figure of its own) and return the axes.

    The parabola that a standard error would stand for is drawn faint: where the curve leaves it, a standard error is
    the wrong summary.
    """
    title = f"Profile of {profile.name}: {_interval(profile)}"
    if ax is None:
        figure, ax = new_figure(title, 6.4, 4.4)
        finish(
            figure,
            ax,
            f"deviance: rise of the objective over the noise; inside the interval up to {profile.cutoff:.3g}",
        )
    else:
        ax.set_title(title, loc="left", fontsize=9, color=INK)
    table = profile.table
    ax.plot(table["value"], table["deviance"], color=LINE, lw=1.8, label="profile")
    ax.plot(table["value"], _parabola(profile), color=FAINT, lw=1.2, ls=":", label="parabola")
    ax.axhline(profile.cutoff, color=ALARM, lw=1.2, ls="--", label=f"{profile.level:.0%} cutoff")
    ax.axvline(profile.estimate, color=INK, lw=0.8)
    first, last = float(table["value"].iloc[0]), float(table["value"].iloc[-1])
    ax.axvspan(max(profile.lower, first), min(profile.upper, last), color=LINE, alpha=0.12, lw=0, label="interval")
    ax.set(ylim=(0.0, 2.5 * profile.cutoff), xlabel=f"{profile.name} ({profile.unit})", ylabel="deviance")
    if profile.logarithmic and last > 3.0 * first:
        ax.set_xscale("log")
        log_axis(ax, "x")
    ax.legend(fontsize=8, loc="upper center", ncols=2, edgecolor="#dddddd")
    return ax


def profiles(fit: "Fit", names: "list[str] | None" = None, level: float = 0.95) -> "Figure":
    """A panel per parameter (all by default); some hundred refits each."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = list(fit.params) if names is None else names
    wide = min(3, len(shown))
    high = -(-len(shown) // wide)
    figure = Figure(figsize=(4.4 * wide, 3.5 * high), layout="constrained", facecolor="white")
    panels = list(figure.subplots(high, wide, squeeze=False).flat)
    for spare in panels[len(shown) :]:
        spare.remove()
    for panel, name in zip(panels, shown, strict=False):
        plain(panel)
        draw_profile(fit.profile(name, level), panel)
        if panel.get_xscale() == "linear":
            panel.xaxis.set_major_locator(MaxNLocator(4))
        legend = panel.get_legend()
        if panel is not panels[0] and legend is not None:  # one says it for all
            legend.remove()
    note = f"profile likelihood of the {fit.law.title} over {len(fit.points)} fitted runs"
    figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, ha="left")
    return figure


def _parabola(profile: Profile) -> "list[float]":
    """The deviance of a quadratic objective with the profile's curvature at the estimate."""
    import numpy as np

    scale = np.log if profile.logarithmic else np.asarray
    away = scale(profile.table["value"].to_numpy()) - float(scale(profile.estimate))
    deviance = profile.table["deviance"].to_numpy()
    near = np.argsort(np.abs(away))[1:5]  # two values to either side: enough to see the curvature
    curvature = float(np.sum(deviance[near] * away[near] ** 2) / np.sum(away[near] ** 4))
    return [float(value) for value in curvature * away**2]


def _interval(profile: Profile) -> str:
    if profile.closed:
        return f"{profile.level:.0%} between {profile.lower:.4g} and {profile.upper:.4g}"
    if profile.open_below and profile.open_above:
        return "not identified"
    return f"under {profile.upper:.4g}, open below" if profile.open_below else f"over {profile.lower:.4g}, open above"
