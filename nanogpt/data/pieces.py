"""Pieces of a source: what one worker reads at a time, cut so that nobody needs to have read what lies before.

A file is cut at fixed offsets, and each piece owns the documents that begin in it, so the pieces follow from the file's
size alone. A text that is one document is cut beside each offset, between a letter or digit and the white space after
it: there every byte-pair encoding in use starts afresh, so the ids are those of the whole text.
"""

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.data.alphabets import as_text
from nanogpt.data.manifest import Split

PIECE = 2**20  # bytes of a source: a tenth of a second of tokenizing
PACKED = (".gz", ".bz2", ".xz", ".zst")
LARGE_GROUP = 2**25  # bytes of text in a table's row group
WINDOW = 2**16  # how far beside an offset a place to cut is looked for
Kind = Literal["text", "jsonl", "parquet"]
END_OF_TEXT = b"<|endoftext|>"
# Where one document ends and the next begins: JSON's lines, texts with GPT-2's separator, WikiText's `= Title =`.
LINE = rb"\n"
SEPARATOR = re.escape(END_OF_TEXT)
ARTICLE = rb"(?<=\n)(?= = (?!= )[^\n]*(?<! =) = ?\n ?\n)"
_LOOK_BACK = {LINE: 1, SEPARATOR: len(END_OF_TEXT), ARTICLE: 1}
_OVERLAP = 4096  # a boundary is no longer than this, so it is found even where two blocks meet
_PLACE_TO_CUT = re.compile(r"[^\W_](?=[ \n])")
_BOM = b"\xef\xbb\xbf"
# A table's types that hold texts; pandas' categories are written as a dictionary of them.
_TEXT = re.compile(r"(dictionary<values=)?(large_)?string(_view)?\b")


@dataclass(frozen=True)
class Reading:
    """How texts are had: the column of JSON objects and tables, and what is done with bytes that are no UTF-8."""

    column: str | None = None
    errors: Literal["strict", "replace"] = "strict"


@dataclass(frozen=True)
class Document:
    """A text, or a stretch of one: `begins` says which. `key` is 64 bits of the sha256 of the whole document."""

    text: str
    key: int
    begins: bool = True


@dataclass(frozen=True)
class Part:
    """Bytes [start, end) of a file of `size` bytes, or one row group of a table: its number is `start`.

    `boundary` separates documents; without one the bytes [first, size) of the file are one document, with `key`.
    """

    path: str
    kind: Kind
    start: int
    end: int
    size: int
    boundary: bytes | None = None
    key: int = 0
    first: int = 0


@dataclass(frozen=True)
class Piece:
    """What a worker is given: parts of files, or texts that could not be read in parallel; `split` where it is known.

    `after` is where the next piece begins: the number of its source, and the place in it. `weight` is for the bar.
    """

    after: tuple[int, int]
    parts: tuple[Part, ...] = ()
    texts: tuple[str, ...] = ()
    split: Split | None = None
    weight: int = 0


def key_of(digest: str) -> int:
    """The 64 bits of a sha256 that decide about a document's split."""
    return int(digest[:16], 16)


def text_key(text: str) -> int:
    """The key of a document by its text: the same wherever, and in whatever kind of file, it lies."""
    return key_of(hashlib.sha256(as_text(text).encode()).hexdigest())


def has_own_key(path: str, reading: Reading) -> bool:
    """Whether the text of a file may be other bytes than the file's: its mark is cut off, or bytes are replaced."""
    with open_source(path) as file:
        return reading.errors == "replace" or file.read(len(_BOM)) == _BOM


def file_key(path: str) -> int:
    """The key of the text of a file that is one document: what `text_key` gives, without the text in memory."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8-sig")("replace")
    with open_source(path) as file:
        while block := file.read(PIECE):
            digest.update(decoder.decode(block).encode())
    digest.update(decoder.decode(b"", True).encode())
    return key_of(digest.hexdigest())


def documents(piece: Piece, reading: Reading) -> Iterator[Document]:
    """The documents of a piece, empty ones included. Raises UserError naming file and place for what is no text."""
    for text in piece.texts:
        yield Document(text, text_key(text))
    for part in piece.parts:
        if part.kind == "parquet":
            found: Iterator[str] = table_rows(part.path, reading.column, part.start)
        elif part.boundary is None:
            text = _stretch(part, reading)
            is_whole = part.start <= part.first == 0 and part.end >= part.size
            yield Document(text, text_key(text) if is_whole else part.key, begins=part.start <= part.first)
            continue
        else:
            found = _records(part, reading)
        for text in found:
            yield Document(text, text_key(text))


def _stretch(part: Part, reading: Reading) -> str:
    """The text of a part of one long document."""
    with open_source(part.path) as file:
        if packing(part.path):
            return decode(file.read().removeprefix(_BOM), part.path, 0, reading)
        start = _cut(file, part, part.start)
        end = _cut(file, part, part.end)
        file.seek(start)
        data = file.read(end - start)
    return decode(data.removeprefix(_BOM) if start == 0 else data, part.path, start, reading)


def _cut(file: BinaryIO, part: Part, offset: int) -> int:
    """The place beside an offset where the text is cut; never in a character, in ordinary text between words."""
    if offset <= part.first or offset >= part.size:
        return max(offset, part.first)
    file.seek(offset)
    window = file.read(min(WINDOW, part.size - offset))
    inside = next((count for count, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), 0)
    # Bytes that are no UTF-8 keep their number this way, so that a place in the text is a place in the file.
    text = window[inside:].decode(errors="surrogateescape")
    found = _PLACE_TO_CUT.search(text)
    return offset + inside + (len(text[: found.end()].encode(errors="surrogateescape")) if found else 0)


def _records(part: Part, reading: Reading) -> Iterator[str]:
    for offset, data in _split_records(part):
        if part.kind == "jsonl":
            if data.strip():
                yield _from_json(data, offset, part.path, reading)
        else:
            text = decode(data, part.path, offset, reading)
            # The line breaks around a separator belong to the file, not to the texts.
            text = text.strip("\r\n") if part.boundary == SEPARATOR else text
            yield text if text.strip() else ""


def _split_records(part: Part) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every document that begins in [start, end)."""
    assert part.boundary is not None
    pattern = re.compile(part.boundary)
    with open_source(part.path) as file:
        base = max(0, part.start - _LOOK_BACK[part.boundary])
        if base:
            file.seek(base)
        buffer, ended, scanned = b"", False, 0
        begin: int | None = 0 if part.start == 0 else None  # of the document being read, in the buffer
        while True:
            match = pattern.search(buffer, scanned)
            if match is None and not ended:
                scanned = max(begin or 0, scanned, len(buffer) - _OVERLAP)
                drop = max(0, min(scanned, len(buffer) if begin is None else begin) - 1)  # one byte to look back on
                buffer, base, scanned = buffer[drop:], base + drop, scanned - drop
                begin = None if begin is None else begin - drop
                block = file.read(PIECE)
                buffer, ended = buffer + block, not block
                continue
            if begin is not None:
                if base + begin >= part.end:
                    return
                data = buffer[begin : len(buffer) if match is None else match.start()]
                yield base + begin, data.removeprefix(_BOM) if base + begin == 0 else data
            if match is None:
                return
            begin = match.end()
            # A boundary without a width would be found again.
            scanned = begin + (match.start() == match.end())


def _from_json(data: bytes, offset: int, path: str, reading: Reading) -> str:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = "; one JSON object on each line is expected" if data.lstrip()[:1] == b"[" else ""
        raise UserError(f"{path}:{_line(path, offset)}: not JSON: {getattr(error, 'msg', error)}{hint}") from None
    if isinstance(value, str):
        return value
    column = reading.column or "text"
    if not isinstance(value, dict) or column not in value:
        found = did_you_mean(column, value) if isinstance(value, dict) else ""
        hint = f"{found}; name another with --column" if isinstance(value, dict) else ""
        raise UserError(f"{path}:{_line(path, offset)}: expected an object with {column!r}, or a text{hint}")
    text = value[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"{path}:{_line(path, offset)}: {column}: expected a text, found a {type(text).__name__}")
    return text


def table_rows(path: str, given: str | None, group: int | None = None) -> Iterator[str]:
    """The texts of a table, or of one of its row groups."""
    groups = None if group is None else [group]
    table, column = open_table(path), text_column(path, given)
    for batch in table.iter_batches(row_groups=groups, columns=[column], batch_size=64):
        for text in batch.column(0).to_pylist():
            yield text or ""


def has_large_groups(path: str, given: str | None) -> bool:
    """Whether a row group has more text than a worker should have in memory."""
    facts, column = open_table(path).metadata, text_column(path, given)
    number = open_table(path).schema_arrow.get_field_index(column)
    names = [facts.schema.column(n).path for n in range(facts.num_columns)]
    number = names.index(column) if column in names else number
    sizes = (facts.row_group(n).column(number).total_uncompressed_size for n in range(facts.num_row_groups))
    return any(size > LARGE_GROUP for size in sizes)


@lru_cache(maxsize=1)
def open_table(path: str) -> Any:
    """A parquet file. Raises UserError without pyarrow, and for a file that is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'nanogpt-scaling[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from None


def text_column(path: str, given: str | None) -> str:
    """The column with the texts: the one asked for, else `text`, else the only one of texts."""
    schema = open_table(path).schema_arrow
    texts = [field.name for field in schema if _TEXT.match(str(field.type))]
    if given in texts or (given is None and "text" in texts):
        return given or "text"
    if given is None and len(texts) == 1:
        return texts[0]
    where = f"column {given!r}: no column of texts" if given else "which column has the texts? name it with --column"
    raise UserError(f"{path}: {where}{did_you_mean(given or 'text', texts)}")


def open_source(path: str) -> BinaryIO:
    """A source's bytes, unpacked. Raises UserError where it cannot be read, or that needs a package."""
    packed = packing(path)
    openers: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        if packed in openers:
            opened = openers[packed](path, "rb")
        else:
            import pyarrow

            opened = pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")
    except ImportError:
        raise UserError(f"{path}: unpacking it needs pyarrow: pip install 'nanogpt-scaling[data]'") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return cast(BinaryIO, _Unpacked(path, opened)) if packed else opened


class _Unpacked:
    """The unpacked bytes of a file; what each packer raises for a damaged one becomes a UserError with its name."""

    def __init__(self, path: str, opened: Any) -> None:
        self._path, self._opened = path, opened

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, size: int | None = None) -> bytes:
        try:
            return self._opened.read() if size is None else self._opened.read(size)
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"{self._path}: damaged, or no {packing(self._path)} file: {error}") from None


def packing(path: str) -> str:
    """The suffix of a packed file, which can only be read from its beginning; else nothing."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in PACKED else ""


def decode(data: bytes, path: str, offset: int, reading: Reading) -> str:
    """UTF-8. Raises UserError naming the byte that is none, unless such bytes are to be replaced."""
    try:
        return data.decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start:,} is {data[error.start]:#04x}"
        raise UserError(f"{path}: not UTF-8: {place}; --encoding-errors replace reads such bytes as U+FFFD") from None


def _line(path: str, offset: int) -> int:
    """The number of the line that an offset lies on."""
    with open_source(path) as file:
        left, lines = offset, 1
        while left and (block := file.read(min(left, PIECE))):
            left, lines = left - len(block), lines + block.count(b"\n")
    return lines
