"""In which order windows are read, and how much of a corpus that is: all of it functions of a position, none a state.

`random` draws windows that may begin anywhere, with replacement, as nanoGPT does. `shuffled` cuts each file into
windows that do not overlap and reads every one once per epoch: files in a shuffled order, the windows of a file in a
shuffled order, both drawn anew for every epoch. Nothing is stored but the order of the files.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanogpt.data.permutation import U64, draw_keys, permute
from nanogpt.data.tokenfiles import Shards, Tokens

WHOLE = 2**32  # weights are counted in parts of this

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Usage:
    """How much of a corpus a run has read. `tokens` counts repeats, `unique_tokens` each token of the corpus once.

    `unique_tokens` is exact for shuffled windows, and an expectation for random ones, which overlap. An epoch is as
    many tokens as the training split has.
    """

    tokens: int
    epochs: float
    unique_tokens: int


class Shuffle:
    """The starts of shuffled windows by their number, from 0 on over all epochs; `seed` may be several numbers."""

    def __init__(self, tokens: Tokens, block_size: int, document: int | None, seed: Sequence[int]) -> None:
        lengths = tokens.lengths if isinstance(tokens, Shards) else np.array([len(tokens)], dtype=np.int64)
        self._begins = np.cumsum(lengths) - lengths
        self._block_size, self._document, self._seed = block_size, document, tuple(seed)
        if document is None:
            self._counts = np.maximum(0, lengths - 1) // block_size
        else:
            self._counts = lengths // document * ((document - 1) // block_size)
        self.windows = int(self._counts.sum())  # per epoch
        self._epoch = functools.lru_cache(4)(self._draw_epoch)
        self._keys = functools.lru_cache(64)(lambda epoch, file: draw_keys(*self._seed, epoch, file + 1))

    def _draw_epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The files in this epoch's order, and the number of windows up to the end of each."""
        order = permute(np.arange(len(self._counts)), len(self._counts), draw_keys(*self._seed, epoch, 0))
        return order, np.cumsum(self._counts[order])

    def starts(self, numbers_B: Ints) -> Ints:
        """Where each window begins in the tokens."""
        found = np.empty_like(numbers_B)
        epoch_B, place_B = np.divmod(numbers_B, self.windows)
        for epoch in np.unique(epoch_B):
            order, ends = self._epoch(int(epoch))
            slot_B = np.searchsorted(ends, place_B, side="right")
            for slot in np.unique(slot_B[epoch_B == epoch]):
                chosen = (epoch_B == epoch) & (slot_B == slot)
                file = int(order[slot])
                inside = place_B[chosen] - (ends[slot] - self._counts[file])
                key: U64 = self._keys(int(epoch), file)
                window = permute(inside, int(self._counts[file]), key)
                found[chosen] = self._begins[file] + self._offset(window)
        return found

    def _offset(self, window_B: Ints) -> Ints:
        if self._document is None:
            return window_B * self._block_size
        per_document = (self._document - 1) // self._block_size
        return window_B // per_document * self._document + window_B % per_document * self._block_size


def random_starts(drawn_B: Ints, length: int, document: int | None, block_size: int) -> Ints:
    """The start of each random window from a number below `random_windows`."""
    document = document or length
    per_document = document - block_size
    return drawn_B // per_document * document + drawn_B % per_document


def random_windows(length: int, document: int | None, block_size: int) -> int:
    """How many windows random draws choose from: those inside a document."""
    document = document or length
    return (document - block_size) * (length // document)


def expected_unique(draws: int, length: int, document: int | None, block_size: int) -> int:
    """How many different input tokens so many random windows read, in expectation.

    A token that k of the n windows cover is missed by all draws with probability (1 - k/n)^draws. In a document k grows
    from 1 at both ends to a plateau in between.
    """
    document = document or length
    places, documents = document - block_size, length // document
    plateau = min(block_size, places)
    covering = np.arange(1, plateau + 1, dtype=np.float64)
    how_many = np.full(plateau, 2.0)
    how_many[-1] = (document - 1) - 2 * (plateau - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        missed = np.exp(draws * np.log1p(-covering / (places * documents))) if draws else np.ones(plateau)
    return round(documents * float((how_many * (1 - missed)).sum()))


@dataclass(frozen=True)
class Deal:
    """Which part of a mixture each of some rows comes from, and the number of that row among all of its part's."""

    part_B: Ints
    number_B: Ints


def deal(shares: Sequence[float], first: int, rows: int) -> Deal:
    """Rows `first` to `first + rows - 1` of an endless sequence in which part i has its share of every stretch.

    Among the first g rows, floor(g w) are of a part of weight w against the parts after it (a Beatty sequence), and so
    on among the rest: exact at every g to one row per part, in whole numbers, with nothing to be remembered.
    """
    part_B, number_B = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
    left, start = np.arange(rows), first
    for part, weight in enumerate(_in_wholes(shares)):
        before, rest = divmod(start * weight, WHOLE)
        counts = before + ((rest + np.arange(len(left) + 1, dtype=np.int64) * weight) // WHOLE)
        taken = np.diff(counts) > 0
        part_B[left[taken]], number_B[left[taken]] = part, counts[:-1][taken]
        left, start = left[~taken], start - before
    return Deal(part_B, number_B)


def dealt(shares: Sequence[float], rows: int) -> list[int]:
    """How many of the first `rows` rows each part has."""
    found, left = [], rows
    for weight in _in_wholes(shares):
        found.append(left * weight // WHOLE)
        left -= found[-1]
    return found


def _in_wholes(shares: Sequence[float]) -> list[int]:
    """Each part's weight against itself and the parts after it; the last takes all that is left."""
    rest = [sum(shares[number:]) for number in range(len(shares))]
    return [*(round(share / whole * WHOLE) for share, whole in zip(shares[:-1], rest, strict=False)), WHOLE]
