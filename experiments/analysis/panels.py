"""Several panels in the place of one axes: a grid of axes inside it, with gaps that suit text rather than a share."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.transforms import Bbox

from experiments.analysis.layout import Sizes


def divide(
    ax: Axes, rows: int, columns: int, gap: tuple[float, float], head: float = 16.0, right: float = 0.0
) -> list[Axes]:
    """Axes inside `ax`, row by row, which becomes an empty frame that keeps its title and its legend.

    `gap`: points between columns and between rows, where labels stand; those at the left and below hang outside, as
    they do at any axes. `head`: points for the titles of the first row, `right`: points left free at the right.
    The panels follow `ax` wherever a layout moves it, and make room for its legend when there is one.
    """
    ax.set_axis_off()
    panels = []
    for i in range(rows):
        for j in range(columns):
            # About the place it will have, by which the size of its text is chosen.
            panels.append(ax.inset_axes((j / columns, 1 - (i + 1) / rows, 0.8 / columns, 0.8 / rows)))
            panels[-1].set_axes_locator(Cell(ax, (i, j), (rows, columns), gap, (head, right)))
    return panels


def colour_bar(ax: Axes, panel: Axes, colours: ScalarMappable, text: str) -> None:
    """The scale of `colours` beside one panel of `ax`; colours go on beyond its upper end."""
    bar = ax.inset_axes((0.0, 0.0, 1.0, 1.0))
    bar.set_axes_locator(_Beside(panel))
    figure = ax.get_figure(root=False)
    assert figure is not None
    figure.colorbar(colours, cax=bar, extend="max", label=text)
    sizes = Sizes.of(ax)
    bar.tick_params(labelsize=sizes.tick)
    bar.yaxis.label.set_fontsize(sizes.label)


class _Beside:
    """The locator of a colour bar: as high as its panel and six points beside it."""

    def __init__(self, panel: Axes) -> None:
        self._panel = panel

    def __call__(self, bar: Any, renderer: Any) -> Bbox:
        locate: Any = self._panel.get_axes_locator()
        box = locate(self._panel, renderer)
        figure: Any = self._panel.get_figure(root=False)
        wide = 6.0 * figure.get_figure(root=True).dpi / 72.0 / figure.bbox.width
        return Bbox.from_bounds(box.x1 + wide, box.y0, 1.5 * wide, box.height)


class Cell:
    """The locator of one panel: its place in the grid, in points of text, whatever the size of `ax` is by then."""

    def __init__(
        self, ax: Axes, at: tuple[int, int], grid: tuple[int, int], gap: tuple[float, float], edge: tuple[float, float]
    ) -> None:
        self._ax, self._at, self._grid, self._gap, self._edge = ax, at, grid, gap, edge

    def __call__(self, panel: Any, renderer: Any) -> Bbox:
        figure: Any = self._ax.get_figure(root=False)
        return self.pixels(renderer).transformed(figure.transSubfigure.inverted())

    def pixels(self, renderer: Any) -> Bbox:
        """The panel's box on the canvas."""
        figure: Any = self._ax.get_figure(root=True)
        point, whole, (rows, columns) = figure.dpi / 72.0, self._ax.bbox, self._grid
        across, up = (points * point for points in self._gap)
        top = whole.y1 - self._edge[0] * point - _legend(self._ax, renderer, point)
        wide = max(whole.width - self._edge[1] * point - across * (columns - 1), 1.0) / columns
        high = max(top - whole.y0 - up * (rows - 1), 1.0) / rows
        row, column = self._at
        return Bbox.from_bounds(whole.x0 + column * (wide + across), top - (row + 1) * high - row * up, wide, high)


def _legend(ax: Axes, renderer: Any, point: float) -> float:
    """Pixels that the legend of `ax` takes at its top."""
    legend = ax.get_legend()
    if legend is None or renderer is None or not legend.get_visible():
        return 0.0
    return float(legend.get_window_extent(renderer).height + 10.0 * point)
