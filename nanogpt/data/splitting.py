"""Which split a document goes to, decided in the order of the documents, so that no document is in both.

files        each file belongs to a split: the corpus's customary one, or what the files' names say
hash         by 64 bits of the sha256 of the document: equal documents go together, wherever they stand
first_shard  the first shard validates, as build-nanogpt and modded-nanogpt have it; it ends with a whole document, and
             documents that come again later are left out of the training split
"""

import hashlib
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.data.manifest import Split
from nanogpt.data.pieces import Piece
from nanogpt.data.shardwriter import CannotGoOn
from nanogpt.data.tokenizing import Encoded

Splitting = Literal["files", "hash", "first_shard"]
Masks = dict[Split, NDArray[np.bool_]]  # by document
KEYS = "val.keys"
LARGEST = 2**64 - 1


class Splitter:
    """Decides by document; `note` is what a later process needs to decide on."""

    def assign(self, piece: Piece, encoded: Encoded) -> Masks:
        """Which documents of a piece go to which split; those that no mask names are left out."""
        raise AssertionError("every way to split has its own")

    def note(self) -> dict[str, Any]:
        return {}

    def again(self) -> dict[str, Any] | None:
        """After the last document: the note to do all again with, if it must be. UserError for an empty split."""
        return None

    def close(self) -> None:
        """Let go of files."""


class ByFile(Splitter):
    """A piece's source says its split."""

    def assign(self, piece: Piece, encoded: Encoded) -> Masks:
        assert piece.split is not None
        return {piece.split: np.ones(len(encoded.lengths), dtype=bool)}


class ByHash(Splitter):
    """Documents with keys below `share` of all go to validation.

    Where a small corpus has none, the one with the smallest key validates; that is known when all have been seen, and
    all is done again with its key as the limit.
    """

    def __init__(self, share: float, noted: dict[str, Any]) -> None:
        self.limit: int = noted.get("limit", min(LARGEST, int(share * 2**64)))
        self._least: int = noted.get("least", LARGEST)
        self._largest: int = noted.get("largest", 0)

    def assign(self, piece: Piece, encoded: Encoded) -> Masks:
        if len(encoded.keys):
            self._least = min(self._least, int(encoded.keys.min()))
            self._largest = max(self._largest, int(encoded.keys.max()))
        is_val = encoded.keys < np.uint64(self.limit)
        return {"train": ~is_val, "val": is_val}

    def note(self) -> dict[str, Any]:
        return {"limit": self.limit, "least": self._least, "largest": self._largest}

    def again(self) -> dict[str, Any] | None:
        if self._least > self._largest:
            raise UserError("all documents are empty")
        if self._least >= self._largest:
            raise UserError(
                "one document alone (or the same one again and again) cannot be split; give more of them, or name the "
                "files of the splits train... and val..."
            )
        if self._largest < self.limit:
            raise UserError("every document fell to validation; lower --val-share")
        return None if self._least < self.limit else {"limit": self._least + 1}


class FirstShard(Splitter):
    """Whole documents validate until a shard is full; later ones train, unless they are among those."""

    def __init__(self, shard_tokens: int, folder: Path, noted: dict[str, Any]) -> None:
        self._shard_tokens = shard_tokens
        self._tokens: int = noted.get("tokens", 0)
        self._full: bool = noted.get("full", False)
        self.dropped: int = noted.get("dropped", 0)
        self._file = io.FileIO(folder / KEYS, "r+b" if (folder / KEYS).exists() else "w+b")
        self._file.truncate(8 * noted.get("keys", 0))
        data = self._file.read()
        self._hash = hashlib.sha256(data)
        if noted and self._hash.hexdigest() != noted["digest"]:
            self._file.close()
            raise CannotGoOn
        self._keys = set(np.frombuffer(data, dtype="<u8").tolist())
        self._sorted: NDArray[np.uint64] | None = None

    def assign(self, piece: Piece, encoded: Encoded) -> Masks:
        count = len(encoded.lengths)
        first = 0 if self._full else self._fill(encoded)  # of those that may train
        is_val = np.arange(count) < first
        is_train = ~is_val
        if is_train.any():
            again = is_train & np.isin(encoded.keys, self._known())
            self.dropped += int((again & encoded.begins).sum())
            is_train &= ~again
        return {"train": is_train, "val": is_val}

    def _fill(self, encoded: Encoded) -> int:
        """How many of the documents, or stretches of one, still validate."""
        for index, (begins, length) in enumerate(zip(encoded.begins, encoded.lengths.tolist(), strict=True)):
            if begins and self._tokens and self._tokens + length > self._shard_tokens:
                self._full = True
                return index
            self._remember(int(encoded.keys[index]))
            self._tokens += length
        return len(encoded.lengths)

    def _remember(self, key: int) -> None:
        if key not in self._keys:
            self._keys.add(key)
            data = key.to_bytes(8, "little")
            self._file.write(data)
            self._hash.update(data)

    def _known(self) -> NDArray[np.uint64]:
        if self._sorted is None:
            self._sorted = np.array(sorted(self._keys), dtype=np.uint64)
        return self._sorted

    def note(self) -> dict[str, Any]:
        count, digest = len(self._keys), self._hash.hexdigest()
        return {"tokens": self._tokens, "full": self._full, "dropped": self.dropped, "keys": count, "digest": digest}

    def again(self) -> dict[str, Any] | None:
        if not self._full:
            raise UserError(
                f"all {self._tokens:,} tokens fit into the first shard, which validates, and none are left to train "
                f"on; give --shard-tokens {max(1, self._tokens // 10)} or so"
            )
        return None

    def close(self) -> None:
        self._file.close()
