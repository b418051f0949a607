"""The figure of a coordinate check: one panel per kind of module, one line per step, a row per parametrization."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.coordcheck import KEYS, KINDS, Reading
from nanogpt.record import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from nanogpt.coordreport import Slope

ALARM, INK = "#D55E00", "#222222"  # vermillion of Okabe and Ito: told from viridis by readers of every colour vision
LEAST_RANGE = 10.0
NAMES = {"sp": "SP", "mup": "muP", "depth_mup": "depth-muP (alpha 1/2)", "completep": "CompleteP"}
WORDS = {
    "embedding": "embedding",
    "attention branch": "attention output",
    "mlp branch": "MLP output",
    "final residual": "last residual stream",
    "logits": "logits",
}


def draw_check(
    readings: Sequence[Reading], slopes: Sequence["Slope"], flat: float, optimizer: str, note: str, folder: Path
) -> Path:
    """Draw `coord_check_<axis>.png` from the readings of one axis; returns its path."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    axis, modes = readings[0].axis, list(dict.fromkeys(reading.mode for reading in readings))
    last = max(reading.step for reading in readings)
    figure = Figure(figsize=(11.5, 1.6 + 1.9 * len(modes)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(modes), len(KINDS), sharex=True, sharey="col", squeeze=False)
    colours = colormaps["viridis"]
    for row, mode in enumerate(modes):
        for column, kind in enumerate(KINDS):
            mine = [reading for reading in readings if (reading.mode, reading.kind) == (mode, kind)]
            _panel(grid[row, column], mine, last, colours)
            found = {s.step: s.slope for s in slopes if (s.mode, s.kind, s.quantity) == (mode, kind, "rms")}
            _write_slope(grid[row, column], found[last], flat)
        grid[row, 0].set_ylabel(f"{NAMES[mode]}\nroot mean square", fontsize=9)
    for axes, kind in zip(grid[0], KINDS, strict=True):
        axes.annotate(WORDS[kind], (0.5, 1.0), (0, 18), "axes fraction", "offset points", ha="center", fontsize=10.5)
        _widen(axes)
    for axes in grid[-1]:
        axes.set_xlabel(f"{axis} ({KEYS[axis]})", fontsize=9)
    shades = ScalarMappable(Normalize(0, last), colours)
    bar = figure.colorbar(shades, ax=grid, shrink=min(1.0, 1.5 / len(modes)), aspect=14, pad=0.01)
    bar.set_label("optimizer steps done", fontsize=9)
    figure.suptitle(
        f"Coordinate check ({optimizer}): how large activations are at different {axis}s, "
        f"from initialization to step {last}.\n"
        f"Flat lines mean that {axis} does not matter. Slope: of the line of step {last}, on log axes; "
        f"orange: steeper than {flat}",
        fontsize=11,
    )
    figure.supxlabel(note, fontsize=8, color="0.35")
    path = folder / f"coord_check_{axis}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return path


def _panel(axes: "Axes", readings: Sequence[Reading], last: int, colours: "Colormap") -> None:
    """One line per step: the geometric mean over seeds against the size."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    sizes = sorted({reading.size for reading in readings})
    for step in range(last + 1):
        values: dict[int, list[float]] = {size: [] for size in sizes}
        for reading in readings:
            if reading.step == step:
                values[reading.size].append(reading.rms)
        line = [_geometric_mean(values[size]) for size in sizes]
        axes.plot(sizes, line, "o-", color=colours(step / last), lw=1.2, ms=2.6)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _geometric_mean(values: Sequence[float]) -> float:
    if not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def _write_slope(axes: "Axes", slope: float, flat: float) -> None:
    wrong = not abs(slope) <= flat
    text = "not finite" if math.isnan(slope) else f"slope {round(slope, 2) + 0.0:+.2f}"
    axes.set_title(
        text, loc="right", fontsize=8.5, color=ALARM if wrong else INK, fontweight="bold" if wrong else "normal", pad=3
    )


def _widen(axes: "Axes") -> None:
    """Show at least a factor of LEAST_RANGE, so that a difference of a percent does not look like a slope."""
    low, high = axes.get_ylim()
    grow = math.sqrt(max(1.0, LEAST_RANGE / (high / low)))
    axes.set_ylim(low / grow, high * grow)
