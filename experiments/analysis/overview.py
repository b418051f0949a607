"""One page on a law fitted to a table: the law through its points, what it leaves unexplained, how it predicts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.approach_plots import rollout_errors
from experiments.analysis.axes import done, label, palette, place
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array
from experiments.analysis.plots import residuals
from experiments.analysis.tablefit import TableFit
from experiments.analysis.ticks import log_axis

MOST_LINES = 14
MOST_BANDS = 4
NAMES = {"N": "parameters N", "D": "tokens D", "C": "training compute C (FLOPs)", "L": "loss L (nats/token)"}


def overview(table: TableFit) -> Figure:
    """The law with its points, residuals along compute and along each input, and held-out errors where measured."""
    names = [name for name in ("C", *table.fit.law.columns) if name in table.prepared.rows]
    along = list(dict.fromkeys(names))
    panels = 1 + len(along) + (table.rollout is not None)
    wide = min(panels, 3)
    figure = Figure(figsize=(6.4 * wide, 4.6 * -(-panels // wide)), layout="constrained", facecolor="white")
    places = list(figure.subplots(-(-panels // wide), wide, squeeze=False).flat)
    for spare in places[panels:]:
        spare.remove()
    law_lines(table.fit, table.prepared.rows, places[0])
    for panel, name in zip(places[1:], along, strict=False):
        residuals(table.prepared.rows, panel, fit=table.fit, x=name, hue=None)
        panel.set(xlabel=NAMES.get(name, name))
        panel.set_title(f"Residuals along {name}", loc="left", fontsize=10)
    if table.rollout is not None:
        rollout_errors(table.prepared.rows, places[panels - 1], rollout=table.rollout)
    figure.supxlabel(f"{table.prepared.path.rpartition('/')[2]}: {len(table.fit.points)} rows fitted, "
                     f"{len(table.fit.dropped)} dropped", fontsize=8, color="#555555", x=0.01, ha="left")  # fmt: skip
    return figure


def law_lines(fit: Fit, rows: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Measured losses, and the law as a line through those that share all inputs but one, with 95 % bands for new runs
    on a few of them. `rows`: the table that was fitted, with C where the horizontal axis is to be compute."""
    _, axes = place(ax, f"{fit.law.title[0].upper()}{fit.law.title[1:]} through {len(fit.points)} points")
    points = rows.loc[fit.points.index]
    varied = "D" if "D" in fit.law.columns else fit.law.columns[0]
    others = [name for name in (*fit.law.columns, *fit.law.label_columns) if name != varied]
    x = "C" if "C" in points else varied
    colours = palette(points, others[0] if others else None)
    groups = [part for _, part in points.groupby(others, sort=True)] if others else [points]
    long = [part for part in groups if part[varied].nunique() > 1][:: max(1, len(groups) // MOST_LINES)]
    banded = {id(part) for part in long[:: max(1, -(-len(long) // MOST_BANDS))]}
    for part in groups:
        colour = colours.colour(part[colours.name].iloc[0] if colours.name is not None else None)
        axes.plot(part[x], part[fit.y], "o", ms=4.5, color=colour, mec="white", mew=0.5, zorder=3)
    for part in long:
        _line(axes, fit, part, varied, others, x, colours.colour(part[colours.name].iloc[0] if colours.name else None),
              id(part) in banded)  # fmt: skip
    axes.set(xlabel=NAMES.get(x, label(x)), ylabel=NAMES.get(fit.y, label(fit.y)))
    log_axis(axes, "x")
    log_axis(axes, "y")
    note = "line: the fitted law; band: 95 % interval for one new run"
    return done(axes, ax, note, colours.handles(axes))


def _line(
    axes: Axes, fit: Fit, part: pd.DataFrame, varied: str, others: list[str], x: str, colour: object, band: bool
) -> None:
    """The law over one input, the others as in the rows of `part`."""
    values = np.geomspace(part[varied].min(), part[varied].max(), 60)
    grid = pd.DataFrame({varied: values, **{name: part[name].iloc[0] for name in others}})
    said = fit.predict(grid)
    # Compute as the table counts it, which need not be 6 N D.
    shown = np.exp(np.interp(np.log(values), *_known(part, varied, x)))
    axes.plot(shown, said["predicted"], "-", color=colour, lw=1.3, zorder=2)
    if band and said["lower"].notna().all():
        axes.fill_between(shown, said["lower"], said["upper"], color=colour, alpha=0.15, lw=0, zorder=1)


def _known(part: pd.DataFrame, varied: str, x: str) -> tuple[Array, Array]:
    means = part.groupby(varied)[x].mean()
    return np.log(means.index.to_numpy(dtype=float)), np.log(means.to_numpy(dtype=float))
