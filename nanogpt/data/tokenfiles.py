"""Files of token ids in the layouts people exchange, and several of them read as one sequence.

Layouts: nanoGPT's .bin (raw), build-nanogpt's .npy, and the .bin of llm.c and modded-nanogpt (a header, then raw).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.data.manifest import Dtype

# llm.c's header: 256 int32, of which the first three are magic number, version and count of tokens.
LLMC_HEADER = 1024
LLMC: dict[int, tuple[int, Dtype]] = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # magic number: version, tokens
LLMC_EVAL = 20240522  # its files of multiple-choice questions have the same suffix
LITTLE_ENDIAN: dict[Dtype, str] = {"uint16": "<u2", "uint32": "<u4"}
NPY_TYPES = (*LITTLE_ENDIAN.values(), "<i4", "<i8")
MOST_OPEN = 256  # files mapped at a time: each holds a file descriptor, of which a process often has 1024

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TokenFile:
    """One file: `tokens` numbers of type `dtype` from byte `offset` on, up to the end."""

    path: Path
    dtype: str
    offset: int
    tokens: int

    @property
    def size(self) -> int:
        """Bytes that the file has when it is whole."""
        return self.offset + self.tokens * np.dtype(self.dtype).itemsize

    def map(self) -> NDArray[Any]:
        """The tokens, memory-mapped and read-only."""
        if not self.tokens:
            return np.empty(0, self.dtype)
        # The plain view of the map: np.memmap's own indexing costs a microsecond per gather for nothing.
        return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, (self.tokens,)))


def read_layout(path: Path, raw: str = "<u2") -> TokenFile:
    """What kind of file this is, from its first bytes; a .bin without a header holds tokens of type `raw`.

    Raises UserError naming a file that cannot be read, is of none of the layouts, or has another size than it says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if path.suffix == ".npy":
                return _npy(path, file, size)
            head = np.frombuffer(file.read(12 if size >= 12 else 0), dtype="<i4")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(head) and int(head[0]) in LLMC:
        return _llmc(path, head, size)
    if len(head) and int(head[0]) == LLMC_EVAL:
        raise UserError(f"{path}: a file of llm.c's evaluation questions, not of tokens")
    width = np.dtype(raw).itemsize
    if size == 0 or size % width:
        raise UserError(f"{path}: not a file of uint{8 * width} tokens: {size} bytes")
    return TokenFile(path, raw, 0, size // width)


def _llmc(path: Path, head: NDArray[Any], size: int) -> TokenFile:
    magic, version, tokens = map(int, head)
    expected, dtype = LLMC[magic]
    if version != expected:
        raise UserError(f"{path}: llm.c's header {magic} has version {version}; read is version {expected}")
    return _whole(TokenFile(path, LITTLE_ENDIAN[dtype], LLMC_HEADER, tokens), size)


def _npy(path: Path, file: Any, size: int) -> TokenFile:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise UserError(f"{path}: not a NumPy file: {' '.join(str(error).split())}") from None
    name = f"<{dtype.str[1:]}" if dtype.str[0] == "<" else dtype.str
    if name not in NPY_TYPES or len(shape) != 1:
        raise UserError(
            f"{path}: holds {dtype} of shape {shape}; expected one row of uint16 or uint32 tokens (also int32, int64)"
        )
    return _whole(TokenFile(path, name, file.tell(), shape[0]), size)


def _whole(file: TokenFile, size: int) -> TokenFile:
    if file.tokens < 1:
        raise UserError(f"{file.path}: its header promises {file.tokens} tokens")
    if size != file.size:
        what = "truncated" if size < file.size else "damaged: too long"
        raise UserError(f"{file.path}: {what}: {size:,} bytes, its header promises {file.size:,}")
    return file


class Shards:
    """The tokens of several files in a row, without loading any: a file is mapped when a token of it is asked for.

    `tokens[places]` takes an array of places of any shape, a slice or a number, as an array's own indexing does.
    """

    def __init__(self, files: Sequence[TokenFile]) -> None:
        self.files = tuple(files)
        self.lengths: Ints = np.array([file.tokens for file in self.files], dtype=np.int64)
        self.ends: Ints = np.cumsum(self.lengths)
        self.begins: Ints = self.ends - self.lengths
        self.dtype = np.result_type(*(file.dtype for file in self.files)) if self.files else np.dtype("<u2")
        # Bounded and safe between threads: the batches are made in one, evaluation in another.
        self._map = functools.lru_cache(MOST_OPEN)(lambda number: self.files[number].map())

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.files else 0

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        where = np.asarray(places)
        if where.size and not (-len(self) <= where.min() and where.max() < len(self)):
            raise IndexError(f"places from {where.min()} to {where.max()} in {len(self)} tokens")
        where = np.where(where < 0, where + len(self), where)
        if len(self.files) == 1:
            return self._map(0)[where]
        found = np.empty(where.shape, self.dtype)
        of_shard = np.searchsorted(self.ends, where, side="right")
        for number in np.unique(of_shard):
            chosen = of_shard == number
            found[chosen] = self._map(int(number))[where[chosen] - self.begins[number]]
        return found[()]

    def windows(self, starts_B: Ints, length: int) -> NDArray[Any]:
        """[B, length] consecutive tokens from each start on; a window may reach into the next file."""
        step = np.arange(length)
        if len(self.files) == 1:
            return self._map(0)[starts_B[:, None] + step]
        first_B, last_B = (np.searchsorted(self.ends, starts_B + far, side="right") for far in (0, length - 1))
        found = np.empty((len(starts_B), length), self.dtype)
        for number in np.unique(first_B):
            chosen = (first_B == number) & (last_B == number)
            found[chosen] = self._map(int(number))[starts_B[chosen, None] - self.begins[number] + step]
        for row in np.flatnonzero(first_B != last_B):
            found[row] = self[starts_B[row] + step]
        return found

    def name(self, place: int) -> str:
        """The file in which a token lies."""
        return str(self.files[int(np.searchsorted(self.ends, place, side="right"))].path)


Tokens = NDArray[Any] | Shards


def windows(tokens: Tokens, starts_B: Ints, length: int) -> NDArray[Any]:
    """[B, length] consecutive tokens from each start on."""
    if isinstance(tokens, Shards):
        return tokens.windows(starts_B, length)
    return tokens[starts_B[:, None] + np.arange(length)]
