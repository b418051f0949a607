"""Writers of token files in the layouts that others read, which go on after a kill from any place that was noted.

nanogpt   train.bin, val.bin: the ids, little-endian, nothing else (nanoGPT; uint32 where the vocabulary needs it)
npy       NAME_train_000001.npy, NAME_val_000000.npy: NumPy's arrays (build-nanogpt)
llmc      the same names with .bin: 256 int32, of which the first are magic, version and the number of tokens, then the
          ids (llm.c and modded-nanogpt: 20240520, version 1, uint16; llm.c's Llama 3: 20240801, version 7, uint32)
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config.diskfull import naming
from nanogpt.data.binfiles import file_sha256
from nanogpt.data.manifest import Dtype, Layout, Shard, Split, SplitFiles
from nanogpt.data.tokenfiles import LLMC, LLMC_HEADER

NPY_HEADER = 128  # numpy.lib.format, version 1.0, of a one-dimensional array of any length
LLMC_MAGIC = {dtype: (magic, version) for magic, (version, dtype) in LLMC.items()}
SHARD = re.compile(r"(?:train|val|test)\.bin|.+_(?:train|val|test)_\d{6,}\.(?:npy|bin)")
MOST_TOKENS = 2**31 - 1  # what an int32 in a header can say


def header(layout: Layout, dtype: Dtype, tokens: int) -> bytes:
    """What stands before the ids of a file."""
    if layout == "nanogpt":
        return b""
    if layout == "llmc":
        words = np.zeros(LLMC_HEADER // 4, dtype="<i4")
        words[:3] = (*LLMC_MAGIC[dtype], tokens)
        return words.tobytes()
    buffer = io.BytesIO()
    facts = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    assert len(buffer.getvalue()) == NPY_HEADER
    return buffer.getvalue()


@dataclass(frozen=True)
class Format:
    """How the tokens of a corpus lie in files: their names begin with `prefix`; nanogpt's have one file per split."""

    layout: Layout
    dtype: Dtype
    shard_tokens: int | None
    prefix: str

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def file(self, split: Split, number: int) -> str:
        """The name of a split's file. Validation counts from 0 and training from 1, as where shard 0 validates."""
        if self.layout == "nanogpt":
            return f"{split}.bin"
        number += split == "train"
        return f"{self.prefix}_{split}_{number:06d}.{'npy' if self.layout == 'npy' else 'bin'}"


class CannotGoOn(Exception):
    """The files are not what was noted of them: gone, or damaged when the machine stopped."""


class SplitWriter:
    """Appends a split's tokens to its files. `noted` is where an earlier process had come to; the rest is cut off.

    Nothing waits for the disk here: a note has hashes, so what a power failure took is found out.
    Raises CannotGoOn then.
    """

    def __init__(self, folder: Path, split: Split, how: Format, noted: dict[str, Any] | None = None) -> None:
        self._folder, self._split, self._how = folder, split, how
        noted = noted or {"shards": [], "open": 0, "documents": 0, "text_bytes": 0}
        self.shards = [Shard.model_validate(shard) for shard in noted["shards"]]
        self.open_tokens: int = noted["open"]
        self.documents: int = noted["documents"]
        self.text_bytes: int = noted["text_bytes"]
        self._file: io.FileIO | None = None
        self._hash = hashlib.sha256()  # of the ids in the file that is being written
        if any(not _is_as_noted(folder, shard) for shard in self.shards):
            raise CannotGoOn
        if self.open_tokens:
            self._reopen(noted["digest"])

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards) + self.open_tokens

    @property
    def _path(self) -> Path:
        return self._folder / self._how.file(self._split, len(self.shards))

    def append(self, ids: bytes | memoryview) -> None:
        """Write tokens, already in the files' dtype, into as many files as they need."""
        left = memoryview(ids).cast("B")
        while len(left):
            if self._file is None:
                self._open()
            room = len(left)
            if self._how.shard_tokens is not None:
                room = (self._how.shard_tokens - self.open_tokens) * self._how.itemsize
            self._write(left[:room])
            self._hash.update(left[:room])
            self.open_tokens += min(room, len(left)) // self._how.itemsize
            left = left[room:]
            if self.open_tokens == self._how.shard_tokens:
                self.close_shard()

    def _open(self) -> None:
        # Unbuffered: what was written is the kernel's, whatever becomes of this process.
        self._file = io.FileIO(self._path, "w+b")
        self._hash = hashlib.sha256()
        self._write(memoryview(header(self._how.layout, self._how.dtype, 0)))

    def _reopen(self, digest: str) -> None:
        try:
            self._file = io.FileIO(self._path, "r+b")
        except OSError:
            raise CannotGoOn from None
        head = len(header(self._how.layout, self._how.dtype, 0))
        self._file.truncate(head + self.open_tokens * self._how.itemsize)
        self._file.seek(head)
        self._hash = hashlib.file_digest(self._file, "sha256")
        if self._hash.hexdigest() != digest:
            self._file.close()
            raise CannotGoOn

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        with naming(self._path):
            while len(data):  # a raw file may take less than it is given
                data = data[self._file.write(data) :]

    def close_shard(self) -> None:
        """Complete the file that is being written, if any."""
        if self._file is None:
            return
        head = header(self._how.layout, self._how.dtype, self.open_tokens)
        self._file.seek(0)
        self._write(memoryview(head))
        self._file.close()
        self._file, path = None, self._path
        size = len(head) + self.open_tokens * self._how.itemsize
        sha256 = file_sha256(path) if head else self._hash.hexdigest()
        self.shards.append(Shard(file=path.name, tokens=self.open_tokens, bytes=size, sha256=sha256))
        self.open_tokens = 0

    def abandon(self) -> None:
        """Let go of the file as it is."""
        if self._file is not None:
            self._file.close()

    def note(self) -> dict[str, Any]:
        """What a later process needs to go on from here."""
        shards = [shard.model_dump() for shard in self.shards]
        return {
            "shards": shards, "open": self.open_tokens, "digest": self._hash.hexdigest() if self.open_tokens else None,
            "documents": self.documents, "text_bytes": self.text_bytes,
        }  # fmt: skip

    def files(self) -> SplitFiles:
        """What the split has become."""
        return SplitFiles(
            shards=tuple(self.shards), tokens=self.tokens, documents=self.documents, text_bytes=self.text_bytes
        )


def _is_as_noted(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256
