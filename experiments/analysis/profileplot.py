"""The figures of profiles: the deviance of a parameter, its cutoff, and the interval that the cutoff leaves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.analysis.axes import ALARM, BLUE, FAINT, INK, done, place
from experiments.analysis.contract import figure, fitted_part, needed_fit
from experiments.analysis.fitted import Fit
from experiments.analysis.panels import divide
from experiments.analysis.profile import Profile
from experiments.analysis.ticks import human, log_axis
from nanogpt.config import UserError

ROOM = 2.5  # cutoffs, above which the curve is not shown


@figure
def profile(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    fit: Fit | None = None,
    parameter: str | None = None,
    level: float = 0.95,
) -> Axes:
    """The profile of one `parameter` (default: the first) of a law fitted to `df`; some hundred refits.

    The parabola that a standard error would stand for is drawn faint: where the curve leaves it, a standard error is
    the wrong summary.
    """
    law = needed_fit(fit, "profile")
    fitted_part(df, law, "profile")
    found = law.profile(next(iter(law.params)) if parameter is None else parameter, level)
    _, axes = place(ax, f"Profile of {found.name}: {100 * level:g} % interval {_interval(found)}", 6.4, 4.4)
    _draw(axes, found)
    note = f"deviance: rise of the objective over the noise; inside the interval up to {found.cutoff:.3g}"
    return done(axes, ax, f"{note}; {len(law.points)} fitted runs", _handles(axes))


@figure
def profiles(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    fit: Fit | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.95,
) -> Axes:
    """A panel per parameter (all by default) of a law fitted to `df`; some hundred refits each."""
    law = needed_fit(fit, "profiles")
    fitted_part(df, law, "profiles")
    if names is not None and not len(names):
        raise UserError("profiles: names is empty; give at least one parameter")
    found = [law.profile(name, level) for name in (law.params if names is None else names)]
    wide = min(3, len(found))
    high = -(-len(found) // wide)
    _, axes = place(
        ax, f"Profile likelihood of the {law.law.title}, {100 * level:g} % intervals", 4.4 * wide, 3.5 * high + 0.4
    )
    panels = divide(axes, high, wide, gap=(22.0, 50.0))
    for panel, each in zip(panels, found, strict=False):
        place(panel, _interval(each))
        _draw(panel, each)
        panel.set(xlabel=each.name, ylabel="deviance" if panel in panels[::wide] else "")
        done(panel, axes, "")
    for spare in panels[len(found) :]:
        spare.remove()
    note = f"profile likelihood of the {law.law.title} over {len(law.points)} fitted runs"
    return done(axes, ax, note, _handles(panels[0]))


def _draw(ax: Axes, found: Profile) -> None:
    table = found.table
    ax.plot(table["value"], table["deviance"], color=BLUE, lw=1.8, label="profile")
    ax.plot(table["value"], _parabola(found), color=FAINT, lw=1.2, ls=":", label="parabola")
    ax.axhline(found.cutoff, color=ALARM, lw=1.2, ls="--", label=f"{100 * found.level:g} % cutoff")
    ax.axvline(found.estimate, color=INK, lw=0.8)
    first, last = float(table["value"].iloc[0]), float(table["value"].iloc[-1])
    ax.axvspan(max(found.lower, first), min(found.upper, last), color=BLUE, alpha=0.12, lw=0, label="interval")
    ax.set(ylim=(0.0, ROOM * found.cutoff), xlabel=f"{found.name} ({found.unit})", ylabel="deviance")
    if found.logarithmic and last > 3.0 * first:
        log_axis(ax, "x")
    else:
        ax.locator_params(axis="x", nbins=4)


def _handles(ax: Axes) -> list[Any]:
    return list(ax.get_legend_handles_labels()[0])


def _parabola(profile: Profile) -> list[float]:
    """The deviance of a quadratic objective with the profile's curvature at the estimate."""
    scale = np.log if profile.logarithmic else np.asarray
    away = scale(profile.table["value"].to_numpy()) - float(scale(profile.estimate))
    deviance = profile.table["deviance"].to_numpy()
    near = np.argsort(np.abs(away))[1:5]  # two values to either side: enough to see the curvature
    curvature = float(np.sum(deviance[near] * away[near] ** 2) / np.sum(away[near] ** 4))
    return [float(value) for value in curvature * away**2]


def _interval(profile: Profile) -> str:
    if profile.closed:
        return f"{human(profile.lower)} to {human(profile.upper)}"
    if profile.open_below and profile.open_above:
        return "not identified"
    return (
        f"under {human(profile.upper)}, open below"
        if profile.open_below
        else f"over {human(profile.lower)}, open above"
    )
