"""What every figure shares: size, colour-blind safe colours, plain ticks, labels with units, the note under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from experiments.analysis.columns import column, diverged, excluded, finished
from experiments.analysis.layout import KeepToPlace, Sizes
from experiments.analysis.ticks import human
from nanogpt.config import UserError

VIRIDIS = LinearSegmentedColormap.from_list(  # up to 0.9: its yellow does not show on white
    "sizes", list(colormaps["viridis"].resampled(256)(np.linspace(0, 0.9, 256)))
)
BLUE = "#31688e"  # of viridis
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


def plain(axes: Axes) -> None:
    """Two spines and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def place(ax: Axes | None, title: str, width: float = 8.0, height: float = 5.2) -> tuple[Figure, Axes]:
    """The axes to draw in, titled, and their figure: those given, or a figure of its own (no pyplot state)."""
    if ax is None:
        ax = Figure(figsize=(width, height), layout="constrained", facecolor="white").add_subplot()
    _title(ax, title)
    plain(ax)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def done(axes: Axes, given: Axes | None, note: str, handles: Sequence[Any] = ()) -> Axes:
    """The finished axes: text of a size that suits them, a legend above the data, and everything kept to its place.

    The note, how many runs and seeds stand behind the figure, is for a figure of its own, where `given` is None.
    """
    sizes = Sizes.of(axes)
    axes.tick_params(labelsize=sizes.tick)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(sizes.label)
    axes.set_axes_locator(KeepToPlace(axes, _title(axes, axes.get_title(loc="left")), handles))
    figure = axes.get_figure(root=True)
    assert figure is not None
    if given is None:
        figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, ha="left")
    return axes


def _title(axes: Axes, text: str) -> Text:
    return axes.set_title(text, loc="left", fontsize=Sizes.of(axes).title, color=INK)


# Names have no order, so they get colours of no order: seaborn's colour-blind palette without its vermillion, which is
# the alarm here, its grey and its yellow.
NAME_COLOURS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#56b4e9", "#ca9161", "#fbafe4")
NAMED_VALUES = 10  # so many values are told apart by steps of equal size; more lie along a scale
HUE = "n_params"  # the colours where nothing else is asked for, in tables that have it
COUNTED = {"n_params": "parameters", "n_params_non_embedding": "parameters", "n_params_active": "active parameters",
           "tokens": "tokens", "flops": "FLOPs", "batch": "tokens per batch"}  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Colours for the values of one column: viridis up to 0.9, in order; names, where they are few, have colours of no
    order; grey where there is no such column."""

    name: str | None
    values: tuple[Any, ...]
    norm: Normalize | None

    def colour(self, value: Any) -> Any:
        """RGBA of one value."""
        if self.name is None:
            return BLUE
        if self.norm is not None:
            return VIRIDIS(float(self.norm(float(value))))
        if isinstance(value, str) and len(self.values) <= len(NAME_COLOURS):
            return to_rgba(NAME_COLOURS[self.values.index(value)])
        return VIRIDIS(self.values.index(value) / max(1, len(self.values) - 1))

    def handles(self, axes: Axes, **style: Any) -> list[Line2D]:
        """Legend entries in the style of what was drawn: every value, or as many as suit the size of the axes."""
        if self.name is None:
            return []
        most = Sizes.of(axes).entries
        shown = self.values
        if len(shown) > most:
            shown = tuple(shown[int(i)] for i in np.linspace(0, len(shown) - 1, min(most, 5)).round())
        style = {"marker": "o", "ms": 5, "lw": 1.6, **style}
        return [Line2D([], [], color=self.colour(v), label=self._words(v), **style) for v in shown]

    def _words(self, value: Any) -> str:
        """`14.4k parameters`, `n_embd = 32`."""
        said = human(float(value)) if isinstance(value, int | float | np.number) else str(value)
        leaf = (self.name or "").rpartition(".")[2]
        return f"{said} {COUNTED[leaf]}" if leaf in COUNTED else f"{leaf} = {said}"


def palette(table: pd.DataFrame, hue: str | None) -> Palette:
    """Colours for column `hue` of `table`; one value only needs none."""
    if hue is None or (hue == HUE and HUE not in table.columns):
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
    return [Line2D([], [], color=ALARM, marker="X", ls="", ms=7, label=f"diverged ({len(lost)})")]


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
