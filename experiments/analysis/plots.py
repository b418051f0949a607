"""The scaling figures: loss against compute with its law, training curves, predictions beside measurements, residuals.

Every function takes a table and an `ax`, and returns the axes; without an `ax` it makes a figure of its own, with a
note under it. What it shows besides the table (a fit, a holdout) goes by keyword. None touches pyplot.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.analysis.axes import (
    BLUE,
    FAINT,
    HUE,
    INK,
    Palette,
    counts,
    done,
    entropy_line,
    label,
    mark_diverged,
    palette,
    place,
    results_of,
)
from experiments.analysis.columns import column, finished, row_names
from experiments.analysis.contract import figure, fitted_part, needed_fit, seen_by
from experiments.analysis.fitted import Fit
from experiments.analysis.frontier import fitted_frontier, lower_envelope
from experiments.analysis.holdout import Holdout
from experiments.analysis.ticks import alike, log_axis
from nanogpt.config import UserError


@figure
def loss_vs_compute(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    curves: pd.DataFrame | None = None,
    fit: Fit | None = None,
    holdout: Holdout | None = None,
    hue: str | None = HUE,
    y: str = "val_loss",
) -> Axes:
    """Loss against training FLOPs on log axes: curves, final losses, their envelope, the fitted law with its 95 % band.

    With a `holdout` the line is the law fitted below its cut, so the band predicts the held-out runs (hollow).
    """
    runs, y = _with_flops(df), column(df, y, "loss_vs_compute")
    good = results_of(runs, y, "loss_vs_compute")
    drawn = holdout.fit if holdout is not None else needed_fit(fit, "loss_vs_compute") if fit is not None else None
    colours = palette(runs, hue)
    _, axes = place(ax, _compute_title(y, drawn, holdout))
    lines = _draw_curves(axes, curves, "flops", y, colours)
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
    axes.set(xlabel=label("flops"), ylabel=label(y))
    log_axis(axes, "x")
    log_axis(axes, "y")
    note = counts(runs) + ("; thin lines: loss during training" if lines else "") + _band_note(drawn)
    return done(axes, ax, note, [*colours.handles(axes), *handles])


def _with_flops(df: pd.DataFrame) -> pd.DataFrame:
    """The table with its compute as numbers in `flops`, wherever its leaf name stands."""
    return df.assign(flops=pd.to_numeric(df[column(df, "flops", "loss_vs_compute")], errors="coerce"))


def _compute_title(y: str, drawn: Fit | None, holdout: Holdout | None) -> str:
    what = label(y).partition(" (")[0].capitalize()
    if drawn is None or drawn.y != y:
        return f"{what} against training compute"
    title = f"{what} against training compute; {drawn.law.title} fitted to {len(drawn.points)} runs"
    return title + (f", which predicts the {len(holdout.table)} largest" if holdout is not None else "")


def _band_note(drawn: Fit | None) -> str:
    if drawn is None or not len(drawn.draws):
        return ""
    return f"; band: 95 % from {len(drawn.draws)} bootstrap fits and residuals"


def _draw_curves(axes: Axes, curves: pd.DataFrame | None, x: str, y: str, colours: Palette) -> bool:
    """One thin line per run, coloured like its dot; returns whether any run was evaluated on its way."""
    if curves is None or y not in curves.columns or x not in curves.columns:
        return False
    lines = False
    for _, part in curves.dropna(subset=[y]).groupby("id", sort=False):
        known = colours.name in part.columns
        colour = colours.colour(part[colours.name].iloc[0]) if colours.name is not None and known else FAINT
        axes.plot(part[x], part[y], color=colour, lw=0.8, alpha=0.45, zorder=1)
        lines = lines or len(part) > 1
    return lines


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
    axes.fill_between(line["flops"], line["lower"], line["upper"], color=BLUE, alpha=0.16, lw=0, zorder=1)
    return axes.plot(line["flops"], line["predicted"], color=INK, lw=1.6, zorder=3, label="fitted law")


def _shade_extrapolation(axes: Axes, drawn: Fit | None, good: pd.DataFrame, y: str) -> list[Line2D | Patch]:
    """Grey where the law is read beyond the compute it was fitted on."""
    if drawn is None or drawn.y != y:
        return []
    edge = float(good.loc[good.index.intersection(drawn.points.index), "flops"].max())
    high = axes.get_xlim()[1]
    axes.axvspan(edge, high, color="#000000", alpha=0.05, lw=0, zorder=0)
    return [Patch(facecolor="#f0f0f0", edgecolor="#cccccc", label="beyond the fitted runs")]


@figure
def training_curves(
    df: pd.DataFrame, ax: Axes | None = None, *, x: str = "flops", hue: str | None = HUE, y: str = "val_loss"
) -> Axes:
    """Loss while training, one line per run, against "flops", "tokens" or "step"; `df` has a row per evaluation."""
    place_of = "training_curves"
    x, y, run = column(df, x, place_of), column(df, y, place_of), column(df, "id", place_of)
    what = label(y).partition(" (")[0].capitalize()
    colours = palette(df, hue)
    shown = df[(df[x] > 0) & np.isfinite(df[y].astype(float))]
    if not len(shown):
        raise UserError(f"{place_of}: no row has both {x} above zero and a finite {y}")
    _, axes = place(ax, f"{what} while training, one line per run")
    for _, part in shown.groupby(run, sort=False):
        colour = colours.colour(part[colours.name].iloc[0]) if colours.name is not None else colours.colour(None)
        axes.plot(part[x], part[y], color=colour, lw=1.1, alpha=0.8)
        axes.plot(part[x].iloc[-1], part[y].iloc[-1], "o", color=colour, ms=3.5)
    axes.set(xlabel=label(x), ylabel=label(y))
    log_axis(axes, "x")
    log_axis(axes, "y")
    note = f"{shown[run].nunique()} runs; the dot is each run's last evaluation"
    return done(axes, ax, note, colours.handles(axes, marker=""))


@figure
def predicted_vs_measured(
    df: pd.DataFrame, ax: Axes | None = None, *, fit: Fit | None = None, holdout: Holdout | None = None
) -> Axes:
    """Losses as the law predicts them (with 95 % intervals) against measured; the rows it was fitted to stand in grey.

    With `fit` every row of `df` that it was not fitted to is predicted; with a `holdout`, the rows that it held out.
    """
    law = holdout.fit if holdout is not None else needed_fit(fit, "predicted_vs_measured")
    fitted = law.points
    table = holdout.table if holdout is not None else _unseen(df, law)
    _, axes = place(ax, _prediction_title(table, holdout, len(fitted)), 6.2, 5.6)
    handles = axes.plot(
        fitted[law.y], fitted["predicted"], "o", color="#b5b5b5", ms=4, label=f"fitted ({len(fitted)} runs)"
    )
    if len(table):
        handles.append(_predictions(axes, table))
    low, high = _held_out_window(table if len(table) else fitted.assign(measured=fitted[law.y]))
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.axline((low, low), (high, high), color=INK, lw=1, ls="--")
    handles.append(Line2D([], [], color=INK, lw=1, ls="--", label="predicted = measured"))
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set(xlabel=f"measured {label(law.y)}", ylabel=f"predicted {label(law.y)}")
    hidden = int((~fitted[law.y].between(low, high)).sum())
    note = f"law fitted where {holdout.by} < {alike([holdout.cut], holdout.by)[0]}; " if holdout is not None else ""
    note += "one point per run" + (f"; {hidden} fitted runs lie outside the window" if hidden else "")
    return done(axes, ax, note, handles)


def _unseen(df: pd.DataFrame, fit: Fit) -> pd.DataFrame:
    """The finished rows that the law was not fitted to: id, measured, predicted, lower, upper, error."""
    y = column(df, fit.y, "predicted_vs_measured")
    rows = df[~seen_by(fit, df, "predicted_vs_measured") & finished(df) & (pd.to_numeric(df[y], errors="coerce") > 0)]
    if not len(rows):
        return pd.DataFrame(columns=["measured", "predicted", "lower", "upper", "error"], dtype=float)
    table = pd.DataFrame({"id": row_names(rows), "measured": rows[y].astype(float)}).join(fit.predict(rows))
    return table.assign(error=table["predicted"] / table["measured"] - 1.0)


def _prediction_title(table: pd.DataFrame, holdout: Holdout | None, fitted: int) -> str:
    if not len(table):
        return f"The law against the {fitted} runs it was fitted to: no row of this table was held out"
    far = f", up to {holdout.reach:.3g} times the {holdout.by} of the fitted ones" if holdout is not None else ""
    error = table["error"].abs()
    return f"{len(table)} held-out runs{far}: largest error {error.max():.2%}, mean {error.mean():.2%}"


def _predictions(axes: Axes, table: pd.DataFrame) -> Any:
    """The held-out runs with their intervals, where there are any; returns the legend's entry."""
    said = f"held out ({len(table)} run{'s' * (len(table) != 1)})"
    measured, predicted = table["measured"], table["predicted"]
    if table["lower"].notna().all():
        axes.vlines(measured, table["lower"], table["upper"], color=BLUE, lw=1.2, zorder=2.5)
        said += ", 95 % interval"
    axes.plot(measured, predicted, "o", mfc="white", mec=BLUE, mew=1.5, ms=6.5, zorder=3)
    return Line2D([], [], color=BLUE, marker="o", mfc="white", mec=BLUE, mew=1.5, ms=6, lw=1.2, label=said)


def _held_out_window(table: pd.DataFrame) -> tuple[float, float]:
    """Limits around the held-out runs, with room above for the nearest fitted ones: all would dwarf the errors."""
    names = [name for name in ("measured", "predicted", "lower", "upper") if name in table]
    values = np.log(table[names].to_numpy(dtype=float))
    low, high = np.nanmin(values), np.nanmax(values)
    span = max(high - low, 0.01)
    return float(np.exp(low - 0.3 * span)), float(np.exp(high + (0.8 if "lower" in names else 0.3) * span))


@figure
def residuals(
    df: pd.DataFrame, ax: Axes | None = None, *, fit: Fit | None = None, x: str | None = None, hue: str | None = HUE
) -> Axes:
    """How far each fitted run lies from the law, in per cent: a pattern here means the law is wrong.

    Along `x`: compute where the table has it, else the law's first input.
    """
    law = needed_fit(fit, "residuals")
    table = fitted_part(df, law, "residuals")
    x = column(table, x or ("flops" if "flops" in table.columns else law.law.columns[0]), "residuals")
    colours = palette(table, hue)
    _, axes = place(ax, f"Residuals of the {law.law.title}: what it leaves unexplained")
    axes.axhline(0.0, color=INK, lw=1)
    if colours.name is None:
        dots = [colours.colour(None)] * len(table)
    else:
        dots = [colours.colour(value) for value in table[colours.name]]
    axes.scatter(table[x], 100 * table["residual"], c=dots, s=25, zorder=3)
    axes.set(xlabel=label(x), ylabel="measured above the law (%)")
    log_axis(axes, "x")
    note = f"{len(table)} fitted runs; above 0 the run did worse than the law"
    return done(axes, ax, note, colours.handles(axes, ls=""))
