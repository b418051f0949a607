"""What every figure shares: size, colour-blind safe colours, plain ticks, labels with units, the note under it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.analysis.columns import column, diverged, excluded, finished
from nanogpt.config import UserError

ALARM = "#D55E00"  # vermillion of Okabe and Ito: told from viridis by readers of every colour vision
INK, FAINT = "#222222", "#8a8a8a"
LABELS = {
    "flops": "training compute (FLOPs)",
    "tokens": "tokens trained on",
    "step": "optimizer step",
    "steps": "optimizer steps",
    "n_params": "parameters",
    "n_params_non_embedding": "parameters without embeddings",
    "n_params_active": "active parameters",
    "n_params_applied": "parameters by application",
    "val_loss": "validation loss (nats/token)",
    "best_val_loss": "best validation loss (nats/token)",
    "train_loss": "training loss (nats/token)",
    "val_excess_loss": "validation loss above the entropy (nats/token)",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size (sequences)",
    "n_layer": "layers (n_layer)",
    "n_embd": "width (n_embd)",
    "wall_seconds": "wall time (s)",
}


def label(name: str) -> str:
    """A person's words for a column, with the unit; an unknown column names itself."""
    return LABELS.get(name, LABELS.get(name.rpartition(".")[2], name))


def human(value: float) -> str:
    """5900 -> 5.9k, 4.2e6 -> 4.2M, up to 1e11; small and huge numbers in plain or scientific form."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e11:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}".replace("e+", "e")


def new_figure(title: str, width: float = 8.0, height: float = 5.2) -> tuple[Figure, Axes]:
    """A figure of its own (no pyplot state) with one set of axes and a title that says what is shown."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK, wrap=True)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Two spines and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def finish(figure: Figure, axes: Axes, note: str, handles: Sequence[Any] | None = None, **legend: Any) -> Figure:
    """Add the legend and, under the axes, the note that says how many runs and seeds stand behind the figure."""
    if handles is None:
        handles = axes.get_legend_handles_labels()[0]
    if handles:
        axes.legend(handles=handles, fontsize=8, frameon=True, framealpha=0.9, edgecolor="#dddddd", **legend)
    figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, ha="left")
    return figure


def place(ax: Axes | None, title: str, width: float = 8.0, height: float = 5.2) -> tuple[Figure, Axes]:
    """The axes to draw in, titled, and their figure: those given, or a figure of its own."""
    if ax is None:
        return new_figure(title, width, height)
    ax.set_title(title, loc="left", fontsize=10, color=INK, wrap=True)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def done(axes: Axes, given: Axes | None, note: str, handles: Sequence[Any], **legend: Any) -> Axes:
    """The axes with a legend; the note is for a figure of its own, where `given` is None."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if given is None:
        finish(figure, axes, note, handles, **legend)
    elif handles:
        inside = {key: value for key, value in legend.items() if key == "loc" and "bbox_to_anchor" not in legend}
        axes.legend(handles=handles, fontsize=7, frameon=True, framealpha=0.9, edgecolor="#dddddd", **inside)
    return axes


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis whose labels read as plain numbers: never 3x10^0, and several of them within one decade."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_minor_locator(NullLocator())
    if high / low < 5:
        ticks = [
            tick for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= tick <= high
        ]
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(_decade))


def _decade(value: float, _: int | None = None) -> str:
    """Powers of ten for what has no short name, plain numbers for the rest."""
    exponent = np.log10(value)
    if exponent < 8 and exponent > -4:
        return human(value)
    power = int(np.floor(exponent + 1e-9))
    digit = value / 10.0**power
    return f"$10^{{{power}}}$" if abs(digit - 1) < 1e-6 else f"${digit:.3g}·10^{{{power}}}$"


def values_axis(axes: Axes, values: Iterable[float], which: str = "x") -> None:
    """Ticks exactly at the values a sweep visited, logarithmic when they are spread like a geometric series."""
    ticks = sorted({float(value) for value in values})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if ticks and ticks[0] > 0 and ticks[-1] / ticks[0] >= 4:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2)
    shown = ticks[:: max(1, -(-len(ticks) // 12))]
    axis.set_major_locator(FixedLocator(shown))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))


NAMED_VALUES = 10  # a legend names up to so many values; more get a colour bar


@dataclass(frozen=True)
class Palette:
    """Colours for the values of one column: viridis up to 0.9, in order; grey where there is no such column."""

    name: str | None
    values: tuple[Any, ...]
    norm: Normalize | None

    def colour(self, value: Any) -> Any:
        """RGBA of one value."""
        if self.name is None:
            return "#31688e"
        if self.norm is not None:
            return colormaps["viridis"](0.9 * float(self.norm(float(value))))
        return colormaps["viridis"](0.9 * self.values.index(value) / max(1, len(self.values) - 1))

    def handles(self, marker: str = "o") -> list[Line2D]:
        """Legend entries, one per value; none when there are too many to name."""
        if self.name is None or len(self.values) > NAMED_VALUES:
            return []
        return [
            Line2D([], [], color=self.colour(v), marker=marker, ms=5, lw=1.6, label=f"{self.short} = {_say(v)}")
            for v in self.values
        ]

    @property
    def short(self) -> str:
        """The column's leaf name."""
        return (self.name or "").rpartition(".")[2]

    def bar(self, figure: Figure, axes: Axes) -> None:
        """A colour bar where the legend cannot name every value."""
        if self.name is None or self.norm is None or len(self.values) <= NAMED_VALUES:
            return
        trimmed = colormaps["viridis"].resampled(256)(np.linspace(0, 0.9, 256))
        mappable = ScalarMappable(norm=self.norm, cmap=LinearSegmentedColormap.from_list("runs", list(trimmed)))
        figure.colorbar(mappable, ax=axes, label=label(self.name), pad=0.01)


def _say(value: Any) -> str:
    return human(float(value)) if isinstance(value, int | float | np.number) else str(value)


def palette(table: pd.DataFrame, hue: str | None) -> Palette:
    """Colours for column `hue` of `table`; one value only needs none."""
    if hue is None:
        return Palette(None, (), None)
    name = column(table, hue, "hue")
    values = tuple(sorted(table[name].dropna().unique().tolist()))
    if len(values) < 2:
        return Palette(None, (), None)
    numeric = pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name])
    if not numeric or len(values) <= NAMED_VALUES:
        # The legend names every value: steps of equal size keep 0, 0.01 and 0.1 apart, which a scale would not.
        return Palette(name, values, None)
    log = values[0] > 0 and values[-1] / values[0] > 4
    return Palette(name, values, (LogNorm if log else Normalize)(values[0], values[-1]))


def mark_diverged(axes: Axes, runs: pd.DataFrame, x: str) -> list[Line2D]:
    """Crosses on the top edge where a run diverged: shown, not dropped. Returns the legend entry."""
    lost = runs[diverged(runs)].dropna(subset=[x])
    if not len(lost):
        return []
    top = axes.get_xaxis_transform()
    axes.plot(lost[x], np.full(len(lost), 1.0), "X", color=ALARM, ms=8, transform=top, clip_on=False, zorder=6)
    return [Line2D([], [], color=ALARM, marker="X", ls="", ms=7, label=f"diverged ({len(lost)}), at the top edge")]


def true_entropy(runs: pd.DataFrame, y: str) -> float | None:
    """The entropy of the source on the scored targets, where the table knows it: no model can go below."""
    if y not in ("val_loss", "best_val_loss") or "val_entropy" not in runs.columns or runs["val_entropy"].isna().all():
        return None
    return float(runs["val_entropy"].median())


def entropy_line(axes: Axes, runs: pd.DataFrame, y: str) -> list[Line2D]:
    """The true entropy as a dotted line, with its legend entry; nothing where it is not known."""
    floor = true_entropy(runs, y)
    if floor is None:
        return []
    return [axes.axhline(floor, color=INK, lw=1.1, ls=(0, (1, 1.5)), label=f"true entropy of the data, {floor:.3f}")]


def counts(runs: pd.DataFrame) -> str:
    """How many runs and seeds a figure rests on, and what became of the others."""
    done = runs[finished(runs)]
    text = f"{len(done)} run{'s' * (len(done) != 1)}"
    if "seed" in done.columns and len(done):
        seeds = sorted(int(seed) for seed in done["seed"].dropna().unique())
        consecutive = all(b - a == 1 for a, b in pairwise(seeds))
        named = f"{seeds[0]}-{seeds[-1]}" if consecutive and len(seeds) > 2 else ", ".join(map(str, seeds))
        text += f", {len(seeds)} seed{'s' * (len(seeds) != 1)} ({named})"
    if "status" in runs.columns:
        others = runs.loc[~finished(runs) & ~excluded(runs), "status"].value_counts().sort_index()
        text += "".join(f"; {number} {status}" for status, number in others.items())
    if left_out := int(excluded(runs).sum()):
        text += f"; {left_out} excluded"
    return text


def results_of(runs: pd.DataFrame, y: str, figure: str) -> pd.DataFrame:
    """The finished rows with a finite `y`; UserError when a figure would be empty."""
    name = column(runs, y, figure)
    good = runs[finished(runs) & np.isfinite(pd.to_numeric(runs[name], errors="coerce").astype(float))]
    if not len(good):
        raise UserError(f"{figure}: no finished run has a {name} to draw")
    return good
