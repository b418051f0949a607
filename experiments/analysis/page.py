"""A page of equal panels in rows, with one colour bar, one legend and one note for all of them."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


class Page:
    """Panels in rows at fixed sizes, room at the right for the colours and below for the note, all in inches."""

    SIDE, ACROSS, DOWN, LEFT, RIGHT, TOP, BOTTOM = 2.7, 0.85, 0.95, 0.8, 1.15, 0.95, 1.35

    def __init__(self, columns: int, rows: int) -> None:
        self._columns = columns
        self.width = self.LEFT + columns * self.SIDE + (columns - 1) * self.ACROSS + self.RIGHT
        self.height = self.TOP + rows * self.SIDE + (rows - 1) * self.DOWN + self.BOTTOM
        self.figure = Figure(figsize=(max(self.width, 8.0), self.height), facecolor="white")
        self.width = max(self.width, 8.0)

    def panel(self, index: int) -> Axes:
        """The axes of one panel, counted along the rows."""
        row, place = divmod(index, self._columns)
        left = self.LEFT + place * (self.SIDE + self.ACROSS)
        bottom = self.height - self.TOP - self.SIDE - row * (self.SIDE + self.DOWN)
        return self.figure.add_axes(self._box(left, bottom, self.SIDE, self.SIDE))

    def _box(self, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
        return left / self.width, bottom / self.height, width / self.width, height / self.height

    def write(self, title: str, note: str) -> None:
        """The title above everything, the note below."""
        self.figure.suptitle(title, x=0.35 / self.width, y=1 - 0.18 / self.height, ha="left", va="top", fontsize=12)
        self.figure.supxlabel(note, x=0.35 / self.width, y=0.12 / self.height, ha="left", va="bottom", fontsize=8,
                              color="#555555")  # fmt: skip

    def colour_bar(self, colours: ScalarMappable, text: str) -> None:
        """Beside the first row; colours go on beyond its upper end."""
        left = self.LEFT + self._columns * (self.SIDE + self.ACROSS) - self.ACROSS + 0.2
        bottom = self.height - self.TOP - self.SIDE
        place = self.figure.add_axes(self._box(left, bottom, 0.13, self.SIDE))
        self.figure.colorbar(colours, cax=place, extend="max", label=text)
        place.tick_params(labelsize=8)
        place.yaxis.label.set_fontsize(9)

    def legend(self, handles: Sequence[Line2D]) -> None:
        """In one line under the title, where it covers nothing."""
        self.figure.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=8, frameon=False,
                           bbox_to_anchor=(0.27 / self.width, 1 - 0.36 / self.height))  # fmt: skip
