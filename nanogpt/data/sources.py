"""The sources of a corpus: which files or streams it is made of, in which order, and how each is cut into pieces."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError
from nanogpt.data.binfiles import file_sha256
from nanogpt.data.manifest import SPLIT_WORDS, Split
from nanogpt.data.pieces import (
    ARTICLE,
    LINE,
    PIECE,
    SEPARATOR,
    Kind,
    Part,
    Piece,
    Reading,
    documents,
    file_key,
    has_large_groups,
    has_own_key,
    key_of,
    open_source,
    open_table,
    packing,
    table_rows,
    text_column,
)

LINES = (".jsonl", ".ndjson", ".json")
USUAL = (".txt", ".text", ".jsonl", ".ndjson", ".parquet")
BESIDE = (".json", ".md")
MOST_DOCUMENTS = 4096  # in a piece of a stream


@dataclass(frozen=True)
class SourceFile:
    """A file: `name` is its path below the folder that was given. `split` is None where documents are drawn by hash.

    `boundary` None: the file is one document, of which bytes [first, end) are taken.
    """

    path: str
    name: str
    kind: Kind
    size: int
    mtime_ns: int
    packed: str = ""
    split: Split | None = None
    boundary: bytes | None = None
    sha256: str = ""
    first: int = 0
    end: int | None = None

    def facts(self) -> dict[str, Any]:
        """What identifies it: where it lies and when it was written do not matter."""
        return {"name": self.name, "bytes": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Stream:
    """Documents that only come one after the other; `open(skip)` gives them from number `skip` on.

    `file` is the one that they are read from, if any.
    """

    name: str
    open: Callable[[int], Iterator[str]]
    split: Split | None = None
    weight: int = 0
    file: SourceFile | None = None


Source = SourceFile | Stream


def find_files(place: Path, glob: str | None, splits: bool = True) -> list[SourceFile]:
    """The files of a corpus in order of their names, with their splits where all names tell one.

    Raises UserError where there is none, or what it is cannot be told.
    """
    root = place if place.is_dir() else place.parent
    if place.is_dir():
        every = list(_walk(place))
        # What is usually beside the texts, not one of them, is only taken where there is nothing else.
        names = [name for name in every if _wanted(name, glob)] or [
            name for name in every if _wanted(name, glob, BESIDE)
        ]
        if not names:
            raise UserError(f"{place}: {_nothing(place, glob)}")
    elif place.exists():
        names = [place.name]
    else:
        raise UserError(f"{place}: no such file or folder")
    files = [found for found in (_file(root, name) for name in names) if found.size]
    if not files:
        raise UserError(f"{place}: {'all files are' if len(names) > 1 else 'the file is'} empty")
    if not splits:
        return files
    told = [split_of(file.name) for file in files]
    if None in told or not {"train", "val"} <= set(told):
        return files
    return [replace(file, split=split) for file, split in zip(files, told, strict=True)]


def split_of(name: str) -> Split | None:
    """The split that a file's path names as a word, as Hugging Face's datasets do: `train-00000.parquet`."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def _walk(folder: Path) -> Iterator[str]:
    """Paths of the files below a folder, but hidden ones: a folder's own first, then those of its folders, sorted.

    The order in which a file system lists names is its own affair, and another one after a copy.
    """
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in shown)


def _wanted(name: str, glob: str | None, suffixes: tuple[str, ...] = ()) -> bool:
    if glob is not None:
        return Path(name).match(glob)
    suffix = Path(name[: len(name) - len(packing(name))]).suffix.lower()
    return suffix in (suffixes or USUAL)


def _nothing(folder: Path, glob: str | None) -> str:
    suffixes = Counter(Path(name).suffix or "no suffix" for name in _walk(folder)).most_common(3)
    there = f"; there are {', '.join(f'{count} of {suffix}' for suffix, count in suffixes)}" if suffixes else ""
    if glob is not None:
        return f"no file matches {glob!r}{there}"
    return f"no files of {', '.join((*USUAL, *BESIDE))}{there}; --glob '*.py' takes others as texts"


def _file(root: Path, name: str) -> SourceFile:
    path = root / name
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    packed = packing(name)
    suffix = Path(name[: len(name) - len(packed)]).suffix.lower()
    kind: Kind = "parquet" if suffix == ".parquet" else "jsonl" if suffix in LINES else "text"
    if kind == "parquet" and packed:
        raise UserError(f"{path}: unpack it first: parquet packs its own contents")
    file = SourceFile(str(path), Path(name).as_posix(), kind, state.st_size, state.st_mtime_ns, packed)
    return replace(file, boundary=LINE) if kind == "jsonl" else file


def separate(files: Iterable[SourceFile], articles: bool) -> list[SourceFile]:
    """Say where documents begin in texts: at WikiText's titles, or behind `<|endoftext|>` where their start has it."""
    done = []
    for file in files:
        if file.kind == "text" and articles:
            file = replace(file, boundary=ARTICLE)
        elif file.kind == "text":
            with open_source(file.path) as opened:
                head = opened.read(PIECE)
            file = replace(file, boundary=SEPARATOR if re.search(SEPARATOR, head) else None)
        done.append(file)
    return done


def hashed(files: Sequence[SourceFile], known: Mapping[str, Any], threads: int) -> list[SourceFile]:
    """The files with their sha256; `known` has those of an earlier call, by path, size and time of writing."""

    def digest(file: SourceFile) -> str:
        earlier = known.get(file.path, {})
        if (earlier.get("bytes"), earlier.get("mtime_ns")) == (file.size, file.mtime_ns):
            return earlier["sha256"]
        return file_sha256(Path(file.path))  # as it lies there, packed or not

    with ThreadPoolExecutor(threads) as pool:
        return [replace(file, sha256=found) for file, found in zip(files, pool.map(digest, files), strict=True)]


def pieces(sources: Sequence[Source], reading: Reading, at: tuple[int, int] = (0, 0)) -> Iterator[Piece]:
    """The pieces of all sources from a place on, always the same ones: small texts together, large files in parts."""
    number, place = at
    while number < len(sources):
        source = sources[number]
        if isinstance(source, Stream) or source.packed:
            yield from _of_stream(_stream(source, reading), number, place)
        elif source.kind == "parquet" and has_large_groups(source.path, reading.column):
            # One group is all that some writers make: too much for a worker at once, so its rows come one by one.
            yield from _of_stream(_rows_of(source, reading), number, place)
        elif source.kind == "parquet":
            yield from _of_table(source, reading, number, place)
        elif place == 0 and _is_small(source):
            group = _small_ones(sources, number)
            parts = tuple(_part(file, 0, file.size, 0) for file in group)
            number += len(group)
            yield Piece((number, 0), parts, split=source.split, weight=sum(file.size for file in group))
            continue
        else:
            yield from _of_file(source, reading, number, place)
        number, place = number + 1, 0


def _is_small(source: Source) -> bool:
    return isinstance(source, SourceFile) and source.kind != "parquet" and not source.packed and source.size <= PIECE


def _small_ones(sources: Sequence[Source], number: int) -> list[SourceFile]:
    """The run of small files from `number` on that makes one piece."""
    group: list[SourceFile] = []
    size = 0
    for source in sources[number : number + MOST_DOCUMENTS]:
        if not isinstance(source, SourceFile) or not _is_small(source) or (group and source.split != group[0].split):
            break
        size += source.size
        if group and size > PIECE:
            break
        group.append(source)
    return group


def _part(file: SourceFile, start: int, end: int, key: int) -> Part:
    size = file.size if file.end is None else file.end
    return Part(file.path, file.kind, start, min(end, size), size, file.boundary, key, file.first)


def _of_file(file: SourceFile, reading: Reading, number: int, place: int) -> Iterator[Piece]:
    end = file.size if file.end is None else file.end
    key = _key(file, reading)
    for start in range(max(place, file.first), end, PIECE):
        stop = min(start + PIECE, end)
        after = (number, stop) if stop < end else (number + 1, 0)
        yield Piece(after, (_part(file, start, stop, key),), split=file.split, weight=stop - start)


def _key(file: SourceFile, reading: Reading) -> int:
    """The key of a document in several pieces, which none of them can tell; 0 where it is not asked for."""
    if file.boundary is not None or file.split is not None or not file.sha256:
        return 0
    return file_key(file.path) if has_own_key(file.path, reading) else key_of(file.sha256)


def _of_table(file: SourceFile, reading: Reading, number: int, place: int) -> Iterator[Piece]:
    groups = open_table(file.path).num_row_groups
    text_column(file.path, reading.column)  # complains before any work
    for group in range(place, groups):
        after = (number, group + 1) if group + 1 < groups else (number + 1, 0)
        part = Part(file.path, "parquet", group, group + 1, groups)
        yield Piece(after, (part,), split=file.split, weight=file.size // groups)


def _of_stream(stream: Stream, number: int, place: int) -> Iterator[Piece]:
    texts: list[str] = []
    size = count = 0
    for text in stream.open(place):
        texts.append(text)
        size, count = size + len(text), count + 1
        if size >= PIECE or len(texts) >= MOST_DOCUMENTS:
            yield Piece((number, place + count), texts=tuple(texts), split=stream.split, weight=size)
            texts, size = [], 0
    # The last piece comes even without texts: it is what says that the source is done.
    yield Piece((number + 1, 0), texts=tuple(texts), split=stream.split, weight=size)


def _rows_of(file: SourceFile, reading: Reading) -> Stream:
    def texts(skip: int) -> Iterator[str]:
        return itertools.islice(table_rows(file.path, reading.column), skip, None)

    return Stream(file.name, texts, file.split, file.size)


def _stream(source: Source, reading: Reading) -> Stream:
    """A packed file as a stream: it cannot be entered in the middle."""
    if isinstance(source, Stream):
        return source
    part = Part(source.path, source.kind, 0, 2**63, 2**63, source.boundary)

    def unpacked(skip: int) -> Iterator[str]:
        found = documents(Piece((0, 0), (part,)), reading)
        return (document.text for document in itertools.islice(found, skip, None))

    return Stream(source.name, unpacked, source.split, source.size)
