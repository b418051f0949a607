"""The figures of comparisons and of what a size needs: multipliers with their verdicts, the law of an optimum, steps
against tokens to one loss.

Each function takes a table and an `ax`, and returns the axes; without an `ax` it makes a figure of its own, with a note
under it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.analysis.axes import ALARM, BLUE, FAINT, INK, counts, done, label, palette, place
from experiments.analysis.by_level import by_level
from experiments.analysis.cbs import TradeOff, trade_off
from experiments.analysis.columns import column, finished
from experiments.analysis.compare import Comparison
from experiments.analysis.contract import figure
from experiments.analysis.hyper import HyperLaw, hyper_law
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import Interval
from experiments.analysis.ticks import alike, human, log_axis
from nanogpt.config import UserError

# Each with a marker of its own, for readers who see no colour.
VERDICTS = {"win": (BLUE, "^"), "tie": (FAINT, "o"), "loss": (ALARM, "v"), "": (INK, "D")}


@figure
def multiplier_forest(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    factor: str,
    baseline: Any = None,
    x: str = "flops",
    y: str = "val_loss",
) -> Axes:
    """The compute multiplier of every variant of `factor` over `baseline` (default: the first of the table), at each
    level and over all of them, with 90 % intervals coloured by win, tie or loss. UserError as `compare`."""
    found = _compared(df, factor, baseline, x, y)
    rows = [row for (whole, table) in found for row in _forest_rows(whole, table, len(found) > 1)]
    first = found[0][0]
    if not rows:
        raise UserError(f"multiplier_forest: {first.multiplier.reason}" if isinstance(first.multiplier, Refusal)
                        else "multiplier_forest: there is nothing to draw")  # fmt: skip
    along = label(first.x).partition(" (")[0]
    _, axes = place(ax, _forest_title([whole for whole, _ in found], along), 8.0, 2.2 + 0.32 * len(rows))
    for rank, row in enumerate(rows):
        _forest_row(axes, len(rows) - 1 - rank, row)
    axes.axvline(1.0, color=INK, lw=1, ls="--", zorder=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    named = f"{first.factor.rpartition('.')[2]}, " if len(found) > 1 else ""
    axes.set(xlabel=f"multiplier of {along}: above 1, {first.baseline} needs more for the same loss",
             ylabel=f"{named}{label(first.x)}")  # fmt: skip
    log_axis(axes, "x")
    seen = [word for word in VERDICTS if any(row["outcome"] == word for row in rows)]
    names = {"": "one seed: no interval, no verdict"}
    handles = [Line2D([], [], ls="", color=VERDICTS[word][0], marker=VERDICTS[word][1], label=names.get(word, word))
               for word in seen]  # fmt: skip
    refused = [
        f"{each.candidate}: {each.multiplier.reason}" for each, _ in found if isinstance(each.multiplier, Refusal)
    ]
    note = [f"{counts(df)}; bars: 90 % intervals over seeds; large: all levels as one curve", *refused]
    return done(axes, ax, "\n".join(note), handles)


def _compared(df: pd.DataFrame, factor: str, baseline: Any, x: str, y: str) -> list[tuple[Comparison, pd.DataFrame]]:
    """Every other variant against the baseline, with its table by level."""
    factor = column(df, factor, "multiplier_forest")
    variants = df.loc[finished(df), factor].dropna().drop_duplicates().tolist()
    baseline = variants[0] if baseline is None and variants else baseline
    others = [each for each in variants if each != baseline]
    if not others:
        raise UserError(f"multiplier_forest: {factor} has one value among the finished runs, so nothing is compared")
    return [by_level(df, factor, baseline, each, x, y) for each in others]


def _forest_title(found: Sequence[Comparison], along: str) -> str:
    """One comparison's verdict, or who was compared."""
    first = found[0]
    if len(found) == 1 and isinstance(first.multiplier, Interval):
        verdict = f", a {first.outcome}" if first.outcome else ""
        return f"{first.candidate} against {first.baseline}: {first.multiplier.text('{:.3g}')} x the {along}{verdict}"
    return f"Multiplier of {along}: {', '.join(str(each.candidate) for each in found)} against {first.baseline}"


def _forest_rows(whole: Any, table: pd.DataFrame, named: bool) -> list[dict[str, Any]]:
    """The levels of one variant, rising, then all of them together; none where it has no multiplier."""
    if not isinstance(whole.multiplier, Interval):
        return []
    front = f"{whole.candidate}, " if named else ""
    names = alike(table["x"], whole.x)
    rows: list[dict[str, Any]] = [
        {**{str(key): value for key, value in row.items()}, "name": f"{front}{name}", "bold": False}
        for name, row in zip(names, table.to_dict(orient="records"), strict=True)
        if np.isfinite(row["multiplier"])
    ]
    all_of_them = {"multiplier": whole.multiplier.value, "lower": whole.multiplier.lower,
                   "upper": whole.multiplier.upper, "outcome": whole.outcome or ""}  # fmt: skip
    return [*rows, {**all_of_them, "name": f"{front}all levels", "bold": True}]


def _forest_row(axes: Axes, at: int, row: dict[str, Any]) -> None:
    colour, marker = VERDICTS[row["outcome"]]
    if np.isfinite(row["lower"]):
        axes.plot([row["lower"], row["upper"]], [at, at], color=colour, lw=3 if row["bold"] else 1.4, zorder=2)
    axes.plot(row["multiplier"], at, marker, color=colour, ms=9 if row["bold"] else 6, mec="white", mew=0.8, zorder=3)


@figure
def optimum_law(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    of: str = "learning_rate",
    size: str = "n_params_non_embedding",
    y: str = "val_loss",
) -> Axes:
    """The best `of` at every size with its 95 % interval over seeds, and the power law through them with its 90 % band.

    Every value tried is a faint tick; a size without an optimum is named under the figure. UserError as `hyper_law`,
    and where no size has an optimum.
    """
    law = hyper_law(df, of, [size], y=y)
    (name,) = law.sizes
    table = law.optima
    known = table[table["reason"] == ""]
    if not len(known):
        raise UserError(f"optimum_law: no size has an optimum: {table['reason'].iloc[0]}")
    what, along = label(law.of), label(name)
    slope = law.exponents[name]
    said = f" goes as the size to the power {slope.text('{:.3f}')}" if isinstance(slope, Interval) else " of each size"
    _, axes = place(ax, f"The best {what}{said}", 9.4)
    tried = df[finished(df)]
    axes.plot(tried[name], tried[law.of], "_", color="#c4c4c4", ms=9, zorder=1)
    handles = [Line2D([], [], color="#c4c4c4", marker="_", ls="", label="values tried"),
               Line2D([], [], color=ALARM, marker="D", ls="", label="lowest loss, 95 % over seeds")]  # fmt: skip
    if not isinstance(law.constant, Refusal):
        handles += _law_line(axes, law, table[name].to_numpy(dtype=float))
    bounded = known[np.isfinite(known["lower"])]
    axes.vlines(bounded[name], bounded["lower"], bounded["upper"], color=ALARM, lw=1.8, zorder=4)
    axes.plot(known[name], known["optimum"], "D", color=ALARM, mec="white", mew=0.8, ms=7, zorder=5)
    values = tried.loc[pd.to_numeric(tried[law.of], errors="coerce") > 0, law.of].astype(float)
    axes.set_ylim(values.min() / 1.3, values.max() * 1.3)
    axes.set(xlabel=along, ylabel=what)
    log_axis(axes, "x")
    log_axis(axes, "y")
    lost = table[table["reason"] != ""]
    refused = [f"no optimum at {at}: {why}" for at, why in zip(alike(lost[name], name), lost["reason"], strict=True)]
    without = [f"no law: {law.constant.reason}"] if isinstance(law.constant, Refusal) else []
    return done(axes, ax, "\n".join([counts(df), *refused, *without, *law.notes]), handles)


def _law_line(axes: Axes, law: HyperLaw, sizes: "np.ndarray[Any, np.dtype[np.float64]]") -> list[Line2D]:
    """The law over the sizes tried, and its band where it has one."""
    grid = np.geomspace(sizes.min(), sizes.max(), 60)
    at = [law.predict(**{law.sizes[0]: float(size)}) for size in grid]
    lower, upper = np.array([each.lower for each in at]), np.array([each.upper for each in at])
    axes.plot(grid, [each.value for each in at], color=INK, lw=1.5, zorder=3)
    axes.fill_between(grid, lower, upper, color=INK, alpha=0.12, lw=0, zorder=2)
    return [Line2D([], [], color=INK, lw=1.5, label="the power law"),
            Line2D([], [], color=INK, alpha=0.15, lw=7, label=f"its {100 * law.level:.0f} % interval")]  # fmt: skip


@figure
def batch_trade_off(
    df: pd.DataFrame, ax: Axes | None = None, *, target: float | None = None, y: str = "val_loss"
) -> Axes:
    """Tokens against steps to one loss, a point per run coloured by its batch size, and the fitted hyperbola with its
    two limits; the critical batch lies at twice both. UserError as `trade_off`, and where no run reaches the loss."""
    found = trade_off(df, target, y)
    points = found.points
    if not len(points):
        raise UserError(f"batch_trade_off: {found.sentence()}")
    critical = found.critical_batch
    known = isinstance(critical, Interval)
    said = "no critical batch" if isinstance(critical, Refusal) else f"critical batch {critical.text('{:,.0f}')} tokens"
    _, axes = place(ax, f"What steps and tokens trade for at loss {found.target:.4g}: {said}", 9.0)
    handles = _hyperbola(axes, found) if known else []
    colours = palette(points.assign(batch=points["batch"].round()), "batch")
    for batch, part in points.groupby(points["batch"].round()):
        axes.plot(part["steps"], part["tokens"], "o", color=colours.colour(batch), mec="white", mew=0.7, ms=7, zorder=4)
    handles += colours.handles(axes, ls="")
    axes.set(xlabel="optimizer steps to that loss", ylabel="tokens to that loss")
    log_axis(axes, "x")
    log_axis(axes, "y")
    runs, sizes = len(points), points["batch"].round().nunique()
    reason = [critical.reason] if isinstance(critical, Refusal) else []
    note = "; ".join([f"{runs} runs of {sizes} batch sizes, one point per run", *reason, *found.notes])
    return done(axes, ax, note, handles)


def _hyperbola(axes: Axes, found: TradeOff) -> list[Line2D]:
    """(S / S_min - 1)(E / E_min - 1) = 1 over the runs, its two limits, and where B = B_crit."""
    batch = np.geomspace(found.points["batch"].min() / 2, found.points["batch"].max() * 2, 200)
    critical = found.min_tokens / found.min_steps
    axes.plot(found.min_steps * (1 + critical / batch), found.min_tokens * (1 + batch / critical), color=INK, lw=1.5)
    axes.axvline(found.min_steps, color=FAINT, lw=1, ls=":")
    axes.axhline(found.min_tokens, color=FAINT, lw=1, ls=":")
    axes.plot(2 * found.min_steps, 2 * found.min_tokens, "*", color=ALARM, mec="white", mew=0.8, ms=16, zorder=5)
    limits = f"least: {human(found.min_steps)} steps, {human(found.min_tokens)} tokens"
    return [Line2D([], [], color=INK, lw=1.5, label="fitted trade-off"),
            Line2D([], [], color=FAINT, lw=1, ls=":", label=limits),
            Line2D([], [], color=ALARM, marker="*", ls="", ms=11, label="at the critical batch")]  # fmt: skip
