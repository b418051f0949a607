"""How a figure keeps to the place of its axes: the title wrapped to their width, the legend in a strip without data.

Sizes in points do not shrink with a panel, and a layout may still change the panel after it was drawn. So nothing of
this can be settled while drawing. An axes locator is asked for the axes' place before every layout and every draw: the
one public hook at which the true size is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

MOST_LEGEND = 0.55  # share of the height that a legend may take
PAD = 4.0  # points around the legend
MOST_LINES = 3  # of a title or a label


@dataclass(frozen=True)
class Sizes:
    """Points of the text in a figure: title, labels, ticks, legend; `entries`: the most values a legend names."""

    title: float
    label: float
    tick: float
    legend: float
    entries: int

    @classmethod
    def of(cls, axes: Axes) -> "Sizes":
        """What suits axes of this width: a page of eight panels, or a figure of its own."""
        figure = axes.get_figure(root=True)
        assert figure is not None
        inches = axes.bbox.width / figure.dpi
        if inches > 4.0:
            return cls(11.0, 10.0, 9.0, 8.0, 10)
        return cls(8.5, 8.0, 7.0, 6.5, 4) if inches > 1.5 else cls(6.5, 6.0, 5.0, 5.0, 3)


class _Wrapped:
    """A text in as many lines as its axes are wide (or high, for one that stands upright), three at most."""

    def __init__(self, text: Text) -> None:
        self._text, self._said, self._written = text, text.get_text(), text.get_text()

    def fit(self, room: float, renderer: Any) -> None:
        """Broken to `room` pixels; a text that the user has changed since is left alone."""
        if self._text.get_text() != self._written:
            return
        lines: list[str] = []
        line = ""
        for word in self._said.split():
            self._text.set_text(f"{line} {word}".strip())
            box = self._text.get_window_extent(renderer)
            if line and (box.height if self._text.get_rotation() == 90.0 else box.width) > room:
                lines, line = [*lines, line], word
            else:
                line = f"{line} {word}".strip()
        lines = [*lines, line]
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + " …"]
        self._written = "\n".join(lines)
        self._text.set_text(self._written)


class KeepToPlace:
    """An axes locator that wraps title and labels, and raises the upper limit so far that the legend stands above the
    data.

    Texts, limits and legends that the user changes afterwards are left as they are. In a figure without a layout
    engine the axes also shrink until title and labels fit between them and their neighbours.
    """

    def __init__(self, axes: Axes, title: Text, handles: Sequence[Any] = ()) -> None:
        # Not the axes it is called with: where axes stand inside others, matplotlib hands over the outer ones.
        self._axes: Any = axes
        self._outer = axes.get_axes_locator()
        self._title, self._across = title, (_Wrapped(title), _Wrapped(axes.xaxis.label))
        self._up = _Wrapped(axes.yaxis.label)
        self._handles, self._size = list(handles), Sizes.of(axes).legend
        self._base, self._limits = axes.get_ylim(), axes.get_ylim()
        self._known: dict[tuple[float, ...], Bbox] = {}
        self._legend: Legend | None = None
        if self._handles:
            self._legend = self._make_legend(axes, 1, self._size)
            _end_at(axes, *self._base)

    def __call__(self, _: Any, renderer: Any) -> Bbox:
        axes = self._axes
        place = self._outer(axes, renderer) if self._outer is not None else axes.get_position(original=True)
        pixels = place.transformed(axes.get_figure(root=False).transSubfigure)
        key = (*np.round(pixels.extents, 1), float(axes.get_figure(root=True).dpi))
        if renderer is None:  # asked by bbox_inches="tight" after everything was laid out
            return next(iter(self._known.values()), place)
        if key not in self._known:
            self._known = {key: self._fit(axes, renderer, place)}
        return self._known[key]

    def get_subplotspec(self) -> Any:
        """Where the axes stand in a grid: tight_layout asks a locator for it."""
        return self._axes.get_subplotspec()

    def _fit(self, axes: Any, renderer: Any, place: Bbox) -> Bbox:
        """The place within `place`, after texts and legend were made to fit it."""
        if axes.get_title() and axes.get_title() != self._title.get_text():
            self._title.set_text("")  # the user has set one in the middle
        axes.apply_aspect(place)
        self._wrap(axes, renderer)
        if axes.get_subplotspec() is not None and axes.get_figure(root=True).get_layout_engine() is None:
            for _ in range(2):  # what the labels take depends on the size, a little
                place = _within_slot(axes, renderer, place)
                axes.apply_aspect(place)
                self._wrap(axes, renderer)
        if self._legend is not None and axes.get_legend() is self._legend:
            self._make_room(axes, renderer)
        return place

    def _wrap(self, axes: Axes, renderer: Any) -> None:
        for text in self._across:
            text.fit(axes.bbox.width, renderer)
        self._up.fit(axes.bbox.height, renderer)

    def _make_legend(self, axes: Axes, columns: int, size: float) -> Legend:
        legend = axes.legend(handles=self._handles, ncols=columns, loc="upper left", fontsize=size, frameon=False,
                             borderaxespad=PAD / size, borderpad=0.1, handlelength=1.6, columnspacing=1.0,
                             labelspacing=0.3)  # fmt: skip
        legend.set_in_layout(False)
        return legend

    def _make_room(self, axes: Axes, renderer: Any) -> None:
        """The legend in as many columns as fit across, and its height added above the highest data. Where not even one
        column fits there is none: it would cover the data or the neighbours."""
        tries = [(size, columns) for size in (self._size, self._size - 1.0)
                 for columns in range(min(4, len(self._handles)), 0, -1)]  # fmt: skip
        for size, columns in tries:
            self._legend = self._make_legend(axes, columns, size)
            box = self._legend.get_window_extent(renderer)
            share = (box.height + 2.5 * renderer.points_to_pixels(PAD)) / axes.bbox.height
            if box.width <= axes.bbox.width and share <= MOST_LEGEND:
                break
        else:
            share = 0.0
        assert self._legend is not None
        self._legend.set_visible(share > 0)
        if axes.get_ylim() == self._limits:
            scale = axes.yaxis.get_transform()
            low, high = scale.transform(np.array(self._base, dtype=float))
            top = scale.inverted().transform(np.array([low + (high - low) / (1.0 - share)]))[0]
            axes.set_ylim(self._base[0], float(top))
            self._limits = axes.get_ylim()


def _end_at(axes: Axes, low: float, high: float) -> None:
    """Curves and upright lines that leave through the upper limit end there, and do not go on behind the legend."""
    data = Rectangle((0.0, low), 1.0, high - low, transform=axes.get_yaxis_transform())
    for artist in (*axes.lines, *axes.collections):
        if artist.get_clip_on() and any(artist.get_transform().contains_branch_seperately(axes.transData)):
            artist.set_clip_path(data)


def _within_slot(axes: Axes, renderer: Any, place: Bbox) -> Bbox:
    """`place` made smaller until title and labels keep out of the neighbours'."""
    figure = axes.get_figure(root=False)
    assert figure is not None
    slot, inverse = _slot(axes), figure.transSubfigure.inverted()
    box = axes.get_tightbbox(renderer, call_axes_locator=False)
    if box is None:
        return place
    taken = box.transformed(inverse)
    x0, y0 = place.x0 + max(0.0, slot.x0 - taken.x0), place.y0 + max(0.0, slot.y0 - taken.y0)
    x1, y1 = place.x1 - max(0.0, taken.x1 - slot.x1), place.y1 - max(0.0, taken.y1 - slot.y1)
    wide, high = 0.3 * place.width, 0.3 * place.height  # never to nothing
    return Bbox.from_extents(x0, y0, max(x1, x0 + wide), max(y1, y0 + high))


def _slot(axes: Axes) -> Bbox:
    """The part of the figure that belongs to a subplot: its left gap, and half of the gaps above and below."""
    spec = axes.get_subplotspec()
    figure: Any = axes.get_figure(root=False)
    assert spec is not None
    bottoms, tops, _, rights = spec.get_gridspec().get_grid_positions(figure)
    rows, columns = spec.rowspan, spec.colspan
    left = rights[columns.start - 1] + 0.004 if columns.start else 0.004
    right = rights[columns.stop - 1] if columns.stop < len(rights) else 0.996
    top = (0.35 * bottoms[rows.start - 1] + 0.65 * tops[rows.start]) if rows.start else 0.996
    bottom = (0.35 * bottoms[rows.stop - 1] + 0.65 * tops[rows.stop]) if rows.stop < len(tops) else 0.004
    return Bbox.from_extents(left, bottom, right, top)
