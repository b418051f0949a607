"""The scaling figures: loss against compute with its law, training curves, predictions beside measurements, residuals.

Every function takes tables (and a Fit or Holdout) and an `ax`, and returns the axes; without an `ax` it makes a figure
of its own, with a note under it. None touches pyplot.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.analysis.axes import (
    FAINT,
    INK,
    Palette,
    counts,
    done,
    entropy_line,
    human,
    label,
    log_axis,
    mark_diverged,
    palette,
    place,
    results_of,
)
from experiments.analysis.columns import column
from experiments.analysis.fitted import Fit
from experiments.analysis.frontier import fitted_frontier, lower_envelope
from experiments.analysis.holdout import Holdout

BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # a legend that can cover no point


def loss_vs_compute(
    runs: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    fit: Fit | None = None,
    holdout: Holdout | None = None,
    hue: str | None = "n_params",
    y: str = "val_loss",
    ax: Axes | None = None,
) -> Axes:
    """Loss against training FLOPs on log axes: curves, final losses, their envelope, the fitted law with its 95 % band.

    With a `holdout` the line is the law fitted below its cut, so the band predicts the held-out runs (hollow).
    """
    good = results_of(runs, y, "loss_vs_compute")
    drawn = holdout.fit if holdout is not None else fit
    figure, axes = place(ax, _compute_title(y, drawn, holdout))
    colours = palette(runs, hue)
    _draw_curves(axes, curves, "flops", y, colours)
    held = good[good["flops"] >= holdout.cut] if holdout is not None and holdout.by == "flops" else good.iloc[:0]
    if holdout is not None and holdout.by != "flops":
        held = good[good[holdout.by] >= holdout.cut]
    _draw_runs(axes, good, held, y, colours)
    _loss_limits(axes, good, runs, y)
    handles: list[Line2D | Patch] = [
        *_envelope(axes, good, curves, y),
        *_law_line(axes, drawn, good, y),
        *entropy_line(axes, runs, y),
    ]
    if len(held):
        handles.append(_hollow(f"held out, not fitted ({len(held)})"))
    handles += _shade_extrapolation(axes, drawn, good, y)
    handles += mark_diverged(axes, runs, "flops")
    colours.bar(figure, axes)
    axes.set(xlabel=label("flops"), ylabel=label(y))
    log_axis(axes, "x")
    log_axis(axes, "y")
    note = counts(runs) + ("; thin lines: loss during training" if curves is not None else "") + _band_note(drawn)
    return done(axes, ax, note, [*colours.handles(), *handles], loc="upper right")


def _compute_title(y: str, drawn: Fit | None, holdout: Holdout | None) -> str:
    what = label(y).partition(" (")[0].capitalize()
    if drawn is None or drawn.y != y:
        return f"{what} against training compute"
    title = f"{what} against training compute; {drawn.law.title} fitted to {len(drawn.points)} runs"
    return title + (f",\nwhich predicts the {len(holdout.table)} largest" if holdout is not None else "")


def _band_note(drawn: Fit | None) -> str:
    if drawn is None or not len(drawn.draws):
        return ""
    return f"; band: 95 % from {len(drawn.draws)} bootstrap fits and residuals"


def _draw_curves(axes: Axes, curves: pd.DataFrame | None, x: str, y: str, colours: Palette) -> None:
    """One thin line per run, coloured like its dot."""
    if curves is None or y not in curves.columns or x not in curves.columns:
        return
    for _, part in curves.dropna(subset=[y]).groupby("id", sort=False):
        known = colours.name in part.columns
        colour = colours.colour(part[colours.name].iloc[0]) if colours.name is not None and known else FAINT
        axes.plot(part[x], part[y], color=colour, lw=0.8, alpha=0.45, zorder=1)


def _draw_runs(axes: Axes, good: pd.DataFrame, held: pd.DataFrame, y: str, colours: Palette) -> None:
    """A dot per run at its final loss; hollow where it was held out of the fit."""
    for index, row in good.iterrows():
        colour = colours.colour(row[colours.name]) if colours.name is not None else colours.colour(None)
        face = "white" if index in held.index else colour
        axes.plot(row["flops"], row[y], "o", ms=6, mfc=face, mec=colour, mew=1.5, zorder=4)


def _hollow(text: str) -> Line2D:
    return Line2D([], [], marker="o", ls="", mfc="white", mec=INK, mew=1.5, ms=6, label=text)


def _loss_limits(axes: Axes, good: pd.DataFrame, runs: pd.DataFrame, y: str) -> None:
    """Limits from the final losses and the floor: the first steps of training would flatten everything else."""
    low, high = float(good[y].min()), float(good[y].max())
    if y == "val_loss" and "val_entropy" in runs.columns and runs["val_entropy"].notna().any():
        low = min(low, float(runs["val_entropy"].median()))
    pad = (high / low) ** 0.08
    axes.set_ylim(low / pad, high * pad**2)
    flops = good["flops"].astype(float)
    axes.set_xlim(flops.min() / 2.5, flops.max() * 3)


def _envelope(axes: Axes, good: pd.DataFrame, curves: pd.DataFrame | None, y: str) -> list[Line2D]:
    """The lowest loss reached at each compute, over runs and, where given, every point of their curves."""
    points = good[["flops", y]]
    if curves is not None and y in curves.columns:
        points = pd.concat([points, curves[["flops", y]]], ignore_index=True)
    best = lower_envelope(points, "flops", y)
    return axes.plot(best["flops"], best[y], color=FAINT, lw=1.4, ls=(0, (4, 2)), zorder=2, label="lowest loss reached")


def _law_line(axes: Axes, drawn: Fit | None, good: pd.DataFrame, y: str) -> list[Line2D]:
    """The fitted law over compute, with its 95 % band; nothing where the law has no such line."""
    if drawn is None or drawn.y != y:
        return []
    low, high = axes.get_xlim()
    line = fitted_frontier(drawn, good, np.geomspace(low, high, 120))
    if line is None:
        return []
    axes.fill_between(line["flops"], line["lower"], line["upper"], color="#31688e", alpha=0.16, lw=0, zorder=1)
    best = "" if drawn.law.columns == ("flops",) else ", best size at each compute"
    return axes.plot(line["flops"], line["predicted"], color=INK, lw=1.6, zorder=3, label=f"fitted law{best}")


def _shade_extrapolation(axes: Axes, drawn: Fit | None, good: pd.DataFrame, y: str) -> list[Line2D | Patch]:
    """Grey where the law is read beyond the compute it was fitted on."""
    if drawn is None or drawn.y != y:
        return []
    edge = float(good.loc[good.index.intersection(drawn.points.index), "flops"].max())
    high = axes.get_xlim()[1]
    axes.axvspan(edge, high, color="#000000", alpha=0.05, lw=0, zorder=0)
    return [Patch(facecolor="#f0f0f0", edgecolor="#cccccc", label="beyond the fitted runs")]


def training_curves(
    curves: pd.DataFrame, x: str = "flops", hue: str | None = None, y: str = "val_loss", ax: Axes | None = None
) -> Axes:
    """Loss while training, one line per run, against "flops", "tokens" or "step"."""
    x, y = column(curves, x, "training_curves"), column(curves, y, "training_curves")
    what = label(y).partition(" (")[0].capitalize()
    figure, axes = place(ax, f"{what} while training, one line per run")
    colours = palette(curves, hue)
    shown = curves[(curves[x] > 0) & np.isfinite(curves[y].astype(float))]
    for _, part in shown.groupby("id", sort=False):
        colour = colours.colour(part[colours.name].iloc[0]) if colours.name is not None else colours.colour(None)
        axes.plot(part[x], part[y], color=colour, lw=1.1, alpha=0.8)
        axes.plot(part[x].iloc[-1], part[y].iloc[-1], "o", color=colour, ms=3.5)
    axes.set(xlabel=label(x), ylabel=label(y))
    log_axis(axes, "x")
    log_axis(axes, "y")
    colours.bar(figure, axes)
    note = f"{shown['id'].nunique()} runs; the dot is each run's last evaluation"
    return done(axes, ax, note, colours.handles(marker=""), **BESIDE)


def predicted_vs_measured(holdout: Holdout, ax: Axes | None = None) -> Axes:
    """Held-out losses: predicted (with its 95 % interval) against measured; the runs that were fitted stand in grey."""
    table, fitted = holdout.table, holdout.fit.points
    title = (
        f"{len(table)} held-out runs, up to {holdout.reach:.3g} times the {holdout.by} of the fitted ones:\n"
        f"largest error {holdout.max_error:.2%}, mean {holdout.mean_error:.2%}"
    )
    _, axes = place(ax, title, 6.2, 5.6)
    axes.plot(
        fitted[holdout.fit.y], fitted["predicted"], "o", color="#b5b5b5", ms=4, label=f"fitted ({len(fitted)} runs)"
    )
    bars = np.abs(table[["lower", "upper"]].to_numpy(dtype=float).T - table["predicted"].to_numpy(dtype=float))
    axes.errorbar(
        table["measured"], table["predicted"], yerr=bars, fmt="o", mfc="white", mec="#31688e", mew=1.5,
        ecolor="#31688e", elinewidth=1.2, capsize=3, ms=7, label=f"held out ({len(table)} runs), 95 % interval",
    )  # fmt: skip
    low, high = _held_out_window(table)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.axline((low, low), (high, high), color=INK, lw=1, ls="--", label="predicted = measured")
    log_axis(axes, "x")
    log_axis(axes, "y")
    what = label(holdout.fit.y)
    axes.set(xlabel=f"measured {what}", ylabel=f"predicted {what}", aspect="equal")
    hidden = int((~fitted[holdout.fit.y].between(low, high)).sum())
    note = f"law fitted where {holdout.by} < {human(holdout.cut)}; one point per run"
    note += f"; {hidden} fitted runs lie outside the window" if hidden else ""
    return done(axes, ax, note, axes.get_legend_handles_labels()[0], loc="upper left")


def _held_out_window(table: pd.DataFrame) -> tuple[float, float]:
    """Limits around the held-out runs, with room above for the nearest fitted ones: all would dwarf the errors."""
    values = np.log(table[["measured", "predicted", "lower", "upper"]].to_numpy(dtype=float))
    low, high = np.nanmin(values), np.nanmax(values)
    span = max(high - low, 0.01)
    return float(np.exp(low - 0.3 * span)), float(np.exp(high + 0.8 * span))


def residuals(
    fit: Fit, runs: pd.DataFrame, x: str = "flops", hue: str | None = "n_params", ax: Axes | None = None
) -> Axes:
    """How far each fitted run lies from the law, in per cent, along compute: a pattern here means the law is wrong."""
    title = f"Residuals of the {fit.law.title}: what it leaves unexplained"
    figure, axes = place(ax, title)
    x, table = column(runs, x, "residuals"), runs.loc[fit.points.index]
    colours = palette(table, hue)
    shown = colours.name is not None
    axes.axhline(0.0, color=INK, lw=1)
    dots = [colours.colour(value) for value in table[colours.name]] if shown else [colours.colour(None)] * len(table)
    axes.scatter(table[x], 100 * fit.residuals, c=dots, s=25)
    axes.set(xlabel=label(x), ylabel="measured above the law (%)")
    log_axis(axes, "x")
    colours.bar(figure, axes)
    note = f"{len(table)} fitted runs; above 0 the run did worse than the law"
    return done(axes, ax, note, colours.handles(), **BESIDE)
