"""Ticks that read as plain numbers, as many as there is room for at the size an axis is drawn with."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator

from experiments.analysis.layout import Sizes

ACROSS, UP = 0.55, 0.28  # inches that one label takes along a horizontal and along a vertical axis
LARGEST = 1e11  # numbers from here on have no short name
ROUND = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))  # mantissas, the more the better


def human(value: float) -> str:
    """5900 -> 5.9k, 4.2e6 -> 4.2M, up to 1e11; small and huge numbers in plain or scientific form."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < LARGEST:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}".replace("e+", "e")


def alike(values: Iterable[float], column: str = "") -> list[str]:
    """The values of one axis in one notation: `human`, but all in scientific form where they are FLOPs or one of them
    is past its names."""
    numbers = [float(value) for value in values]
    if column.rpartition(".")[2] == "flops" or any(abs(value) >= LARGEST for value in numbers):
        return [f"{value:.3g}" if abs(value) < 1e3 else _scientific(value) for value in numbers]
    return [human(value) for value in numbers]


def _scientific(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


class LogTicks(Locator):
    """Round numbers along a logarithmic axis: never crowded, and several of them within one decade, too."""

    def __init__(self, which: str) -> None:
        self._which = which

    def __call__(self) -> Any:
        axis: Any = self.axis
        return self.tick_values(*sorted(axis.get_view_interval()))

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The ticks between two ends, both above zero."""
        axis: Any = self.axis
        most = room_for(axis.axes, self._which)
        decades = np.arange(np.floor(np.log10(vmin)), np.ceil(np.log10(vmax)) + 1)
        steps = [(1, mantissas) for mantissas in ROUND] + [(step, ROUND[-1]) for step in range(2, len(decades))]
        for step, mantissas in steps:
            ticks = [m * 10.0**d for d in decades[decades % step == 0] for m in mantissas]
            inside = [tick for tick in ticks if vmin <= tick <= vmax]
            if min(3, most) <= len(inside) <= most:
                return np.array(inside)
        even = MaxNLocator(max(2, most - 1), steps=[1, 2, 5, 10]).tick_values(vmin, vmax)
        return np.array([tick for tick in even if vmin <= tick <= vmax])


class ValueTicks(Locator):
    """Ticks at values that a sweep visited, every second or third of them where all would be crowded."""

    def __init__(self, values: Sequence[float], which: str) -> None:
        self._values, self._which = np.array(sorted(values)), which

    def __call__(self) -> Any:
        return self.tick_values(0.0, 0.0)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The values, whatever the ends."""
        axis: Any = self.axis
        return self._values[:: max(1, -(-len(self._values) // room_for(axis.axes, self._which)))]


def room_for(axes: Axes, which: str) -> int:
    """How many labels fit beside each other along an axis as it is drawn now."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = (axes.bbox.width if which == "x" else axes.bbox.height) / figure.dpi
    labels = inches / (ACROSS if which == "x" else UP) * 8.0 / Sizes.of(axes).tick
    return int(np.clip(labels, 2, 12))


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers, never 3x10^0."""
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(LogTicks(which))
    axis.set_major_formatter(FuncFormatter(decade))


def decade(value: float, _: int | None = None) -> str:
    """Powers of ten for what has no short name, plain numbers for the rest."""
    exponent = np.log10(value)
    if exponent < 8 and exponent > -4:
        return human(value)
    power = int(np.floor(exponent + 1e-9))
    digit = value / 10.0**power
    return f"$10^{{{power}}}$" if abs(digit - 1) < 1e-6 else f"${digit:.3g}·10^{{{power}}}$"


def values_axis(axes: Axes, values: Iterable[float], which: str = "x") -> None:
    """Ticks at the values a sweep visited, on a base-2 scale when they are spread like a geometric series."""
    ticks = sorted({float(value) for value in values})
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    if ticks and ticks[0] > 0 and ticks[-1] / ticks[0] >= 4:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2)
    axis.set_major_locator(ValueTicks(ticks, which))
    axis.set_minor_locator(NullLocator())
    names = dict(zip(ticks, alike(ticks), strict=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value) or human(value)))
