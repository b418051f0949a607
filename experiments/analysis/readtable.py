"""Reading a table that somebody else wrote: comma, tab, semicolon, bar or blanks between its cells, plain or gzipped.

Nothing is guessed about a cell and no row is lost: each keeps the line it stood in, so that a message can name it.
"""

import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.analysis.cells import MISSING, NotANumber, has_unit, number
from nanogpt.config import UserError, did_you_mean

SEPARATORS = (",", "\t", ";", "|")
GZIP = b"\x1f\x8b"
OTHER_FILES = {b"PK": "a zip archive (.xlsx?)", b"PAR1": "a Parquet file", b"%PDF": "a PDF", b"\x89HDF": "an HDF5 file"}


@dataclass(frozen=True, eq=False)
class Table:
    """Cells as text. `frame`: a column per distinct name, its index the lines of the file; `repeated`: names that stand
    more than once in the header, of which `frame` holds the first."""

    path: str
    frame: pd.DataFrame
    repeated: frozenset[str]

    def numbers(self, name: str, flag: str) -> "pd.Series[float]":
        """The column as float64, NaN where a cell is empty. UserError for an unknown or repeated name, and for the
        first cell that is no number, with its line."""
        self.check_name(name, flag)
        values, wrong = [], []
        for line, text in self.frame[name].items():
            try:
                values.append(number(text))
            except NotANumber as error:
                values.append(float("nan"))
                wrong.append(f"line {line}: column {name} holds {error}")
        if wrong:
            others = f" ({len(wrong)} of {len(values)} cells of this column)" if len(wrong) > 1 else ""
            raise UserError(f"{self.path}, {wrong[0]}{others}")
        return pd.Series(values, self.frame.index, float)

    def texts(self, name: str, flag: str) -> "pd.Series[str]":
        """The column as names. UserError as `numbers` where there is no such column."""
        self.check_name(name, flag)
        return self.frame[name]

    def check_name(self, name: str, flag: str) -> None:
        """UserError unless the header holds `name` exactly once."""
        if name not in self.frame.columns:
            raise UserError(f"{self.path}: {flag}: no column {name!r}{did_you_mean(name, self.frame.columns)}")
        if name in self.repeated:
            raise UserError(f"{self.path}: {flag}: the header holds {name!r} more than once; rename one of them")

    def guessed(self) -> pd.DataFrame:
        """Every column as numbers where all of its cells are, else as text: what filters are asked about."""
        return pd.DataFrame({name: _guess(self.frame[name]) for name in self.frame.columns})

    def with_units(self, name: str) -> list[str]:
        """The cells of a column that are written with a unit, as 70B is."""
        return [str(cell).strip() for cell in self.frame[name] if has_unit(cell)]


def _guess(column: "pd.Series[str]") -> "pd.Series[float] | pd.Series[str]":
    try:
        return column.map(number).astype(float)
    except NotANumber:
        return column


def read_table(path: str | Path) -> Table:
    """The table in a CSV or TSV file, gzipped or not.

    Raises UserError in one line: no such file, empty, no text, not a table, rows of unequal length, a header without
    names.
    """
    name = str(path)
    lines = list(_lines(_text(Path(path)), name))
    if not lines:
        raise UserError(f"{name}: is empty; a table has a line of column names and a line per run")
    (_, header), rows = lines[0], lines[1:]
    header = [cell.strip() for cell in header]
    if len(header) < 2:
        raise UserError(f"{name}: is not a table: its first line is {header[0][:60]!r}, without a comma, tab or other "
                        "separator")  # fmt: skip
    if all(_is_number(cell) for cell in header):
        raise UserError(f"{name}: its first line holds numbers ({', '.join(header[:3])} ...), not names of columns")
    if not rows:
        raise UserError(f"{name}: has column names ({', '.join(header)}) and no rows")
    if all(len(cells) == len(header) + 1 for _, cells in rows):
        header = ["", *header]  # R writes the names of its rows without a name of their own
    _check_rows(header, rows, name)
    named = [cell or f"column {i}" for i, cell in enumerate(header, 1)]
    frame = pd.DataFrame([cells for _, cells in rows], index=[line for line, _ in rows], columns=named, dtype=str)
    repeated = frozenset(each for each, times in Counter(named).items() if times > 1)
    return Table(name, frame.loc[:, ~frame.columns.duplicated()], repeated)


def _check_rows(header: list[str], rows: list[tuple[int, list[str]]], name: str) -> None:
    for line, cells in rows:
        if [cell.strip() for cell in cells] == header:
            raise UserError(f"{name}, line {line}: repeats the names of the columns; remove the line")
        if len(cells) != len(header):
            raise UserError(f"{name}, line {line}: has {len(cells)} cells where the header has {len(header)} names; a "
                            "cell that holds a separator needs quotes")  # fmt: skip


def _is_number(cell: str) -> bool:
    try:
        return bool(cell.strip().lower() not in MISSING and number(cell) is not None)
    except NotANumber:
        return False


def _text(path: Path) -> str:
    """The file as text; UserError where it is none."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP) else data
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a table") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    other = next((what for mark, what in OTHER_FILES.items() if data.startswith(mark)), None)
    if other is not None:
        raise UserError(f"{path}: is {other}; save the table as CSV")
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save the table as CSV in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path}: is not text; save the table as CSV")
    if text.lstrip()[:1] in ("{", "[", "<"):
        raise UserError(f"{path}: is not a table (it begins with {text.lstrip()[0]!r}); save it as CSV")
    return text


def _lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that says something; lines that begin with # are remarks."""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    bare = re.sub(r'"[^"]*"', "", first)
    separator = max(SEPARATORS, key=bare.count)
    if not bare.count(separator):
        blank = [(i, line.split()) for i, line in enumerate(text.splitlines(), 1) if _says(line.split())]
        if len({len(cells) for _, cells in blank}) > 1:
            raise UserError(f"{name}: is not a table: its first line is {first[:60]!r}, without a comma or tab")
        yield from blank
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        begins = 1
        for cells in reader:
            if _says(cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}") from None


def _says(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells) and not cells[0].startswith("#")  # a remark
