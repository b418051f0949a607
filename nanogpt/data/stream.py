"""Batches as a pure function of (seed, step), and the fixed windows that every evaluation scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.data.opening import OpenCorpus, OpenMixture, OpenPart
from nanogpt.data.orders import (
    Shuffle,
    Usage,
    deal,
    dealt,
    expected_unique,
    random_starts,
    random_windows,
)
from nanogpt.data.tokenfiles import Shards, Tokens, windows

UNSCORED = -1  # the target that the loss leaves out

Ints = NDArray[np.int64]
Sampling = Literal["random", "shuffled"]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, int64 [B, T]; a target of UNSCORED does not enter the loss."""

    x_BT: Ints
    y_BT: Ints


class Stream(Protocol):
    """Where training gets its batches: number `step` is the same whoever asks, and when."""

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step` (from 0), in the same time for every step."""

    def usage(self, steps: int) -> Usage:
        """What so many steps have read."""

    def usage_of_parts(self, steps: int) -> dict[str, Usage]:
        """The same for each part of a mixture; empty for a single corpus."""


def make_stream(
    corpus: OpenCorpus | OpenMixture, batch_size: int, block_size: int, seed: int, sampling: Sampling = "random"
) -> Stream:
    """The stream of a corpus or a mixture. Raises UserError for a context that does not fit."""
    if isinstance(corpus, OpenMixture):
        return MixedStream(corpus, batch_size, block_size, seed, sampling)
    return TrainStream(corpus, batch_size, block_size, seed, sampling)


def _read(tokens: Tokens, starts_B: Ints, block_size: int, vocab_size: int) -> Ints:
    """The windows' tokens, int64 [B, T + 1]. Raises UserError for a token that no vocabulary has: a damaged file."""
    window_BS = windows(tokens, starts_B, block_size + 1)
    largest = int(window_BS.max())
    if largest >= vocab_size:
        row = int(np.argmax(window_BS.max(axis=1)))
        place = int(starts_B[row] + np.argmax(window_BS[row]))
        name = f"{tokens.name(place)}: " if isinstance(tokens, Shards) else ""
        raise UserError(f"{name}holds the token {largest}, outside its vocabulary of {vocab_size} tokens: damaged")
    return window_BS.astype(np.int64)


def _as_batch(window_BS: Ints, min_context: int) -> Batch:
    y_BT = window_BS[:, 1:].copy()
    # The target at position t has t + 1 predecessors in the block.
    y_BT[:, : min_context - 1] = UNSCORED
    return Batch(window_BS[:, :-1], y_BT)


@dataclass(frozen=True)
class TrainStream:
    """Windows of one corpus's training split."""

    corpus: OpenCorpus
    batch_size: int
    block_size: int
    seed: int
    sampling: Sampling = "random"

    def __post_init__(self) -> None:
        _check_length(self.corpus, "train", self.block_size)
        if self.sampling == "shuffled":
            _check_windows(self._shuffle, self.block_size)

    @cached_property
    def _shuffle(self) -> Shuffle:
        return Shuffle(self.corpus.train, self.block_size, self.corpus.document, (self.seed,))

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step` (from 0): numbered windows, or the counter-based Philox generator's."""
        if self.sampling == "shuffled":
            starts_B = self._shuffle.starts(step * self.batch_size + np.arange(self.batch_size))
        else:
            shape = (len(self.corpus.train), self.corpus.document, self.block_size)
            rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
            starts_B = random_starts(rng.integers(0, random_windows(*shape), size=self.batch_size), *shape)
        window_BS = _read(self.corpus.train, starts_B, self.block_size, self.corpus.vocab_size)
        return _as_batch(window_BS, self.corpus.min_context)

    def usage(self, steps: int) -> Usage:
        """What so many steps have read."""
        shuffle = self._shuffle if self.sampling == "shuffled" else None
        return _usage(self.corpus, self.block_size, steps * self.batch_size, shuffle)

    def usage_of_parts(self, steps: int) -> dict[str, Usage]:
        """A single corpus has no parts."""
        return {}


@dataclass(frozen=True)
class MixedStream:
    """Windows of several corpora, dealt out so that each has its share of every stretch of sequences."""

    mixture: OpenMixture
    batch_size: int
    block_size: int
    seed: int
    sampling: Sampling = "random"

    def __post_init__(self) -> None:
        for part in self.mixture.parts:
            _check_length(part.corpus, "train", self.block_size, part.name)
        if self.sampling == "shuffled":
            for part, shuffle in zip(self.mixture.parts, self._shuffles, strict=True):
                _check_windows(shuffle, self.block_size, part.name)

    @cached_property
    def _shuffles(self) -> list[Shuffle]:
        return [
            Shuffle(part.corpus.train, self.block_size, part.corpus.document, (self.seed, number))
            for number, part in enumerate(self.mixture.parts)
        ]

    @property
    def _shares(self) -> list[float]:
        return [part.share for part in self.mixture.parts]

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step` (from 0), its rows in the order in which they are dealt."""
        dealt_out = deal(self._shares, step * self.batch_size, self.batch_size)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        drawn_B = rng.integers(0, 2**62, size=self.batch_size)
        window_BS = np.empty((self.batch_size, self.block_size + 1), dtype=np.int64)
        for number, part in enumerate(self.mixture.parts):
            chosen = dealt_out.part_B == number
            if chosen.any():
                starts = self._starts(number, part, dealt_out.number_B[chosen], drawn_B[chosen])
                window_BS[chosen] = _read(part.corpus.train, starts, self.block_size, part.corpus.vocab_size)
        # One for all rows: the mean over a batch takes every sequence to have as many scored targets.
        return _as_batch(window_BS, max(part.corpus.min_context for part in self.mixture.parts))

    def _starts(self, number: int, part: OpenPart, numbers_B: Ints, drawn_B: Ints) -> Ints:
        if self.sampling == "shuffled":
            return self._shuffles[number].starts(numbers_B)
        shape = (len(part.corpus.train), part.corpus.document, self.block_size)
        return random_starts(drawn_B % random_windows(*shape), *shape)

    def usage(self, steps: int) -> Usage:
        """What so many steps have read of all parts together."""
        parts = list(self.usage_of_parts(steps).values())
        tokens, there = sum(part.tokens for part in parts), sum(len(part.corpus.train) for part in self.mixture.parts)
        return Usage(tokens, tokens / there, sum(part.unique_tokens for part in parts))

    def usage_of_parts(self, steps: int) -> dict[str, Usage]:
        """What so many steps have read of each part."""
        shuffles = self._shuffles if self.sampling == "shuffled" else [None] * len(self.mixture.parts)
        rows = dealt(self._shares, steps * self.batch_size)
        return {
            part.name: _usage(part.corpus, self.block_size, count, shuffle)
            for part, count, shuffle in zip(self.mixture.parts, rows, shuffles, strict=True)
        }


def _usage(corpus: OpenCorpus, block_size: int, rows: int, shuffle: Shuffle | None) -> Usage:
    if shuffle is not None:
        unique = min(rows, shuffle.windows) * block_size
    else:
        unique = expected_unique(rows, len(corpus.train), corpus.document, block_size)
    return Usage(rows * block_size, rows * block_size / len(corpus.train), unique)


@dataclass(frozen=True)
class EvalPart:
    """A mixture's part in an EvalSet: its rows are the `windows` that follow those of the part before it."""

    name: str
    share: float
    windows: int


@dataclass(frozen=True)
class EvalSet:
    """Fixed windows, evenly spread over the validation split, that do not overlap.

    `entropy` is the true cross-entropy of the source on the scored targets, nats per token; None where unknown.
    `bytes_per_token` is the size of their text, `bytes_of_parts` that of each part's. A mixture has `parts`.
    """

    batch: Batch
    entropy: float | None
    bytes_per_token: float | None = None
    parts: tuple[EvalPart, ...] = ()
    bytes_of_parts: tuple[float | None, ...] = ()

    @property
    def scored(self) -> int:
        return int((self.batch.y_BT != UNSCORED).sum())


def make_eval_set(corpus: OpenCorpus | OpenMixture, block_size: int, eval_tokens: int | None) -> EvalSet:
    """At most `eval_tokens` tokens (None: all that fill whole windows) of the validation split.

    The parts of a mixture have equal numbers of tokens, whatever their weights, so that each one's loss is known well.
    """
    if isinstance(corpus, OpenMixture):
        return _mixed_eval_set(corpus, block_size, eval_tokens)
    _check_length(corpus, "val", block_size)
    length = corpus.document or len(corpus.val)
    per_document = (length - 1) // block_size
    total = per_document * (len(corpus.val) // length)
    count = total if eval_tokens is None else max(1, min(total, eval_tokens // block_size))
    index_W = np.arange(count, dtype=np.int64) * total // count
    starts_W = index_W // per_document * length + index_W % per_document * block_size
    window_WS = _read(corpus.val, starts_W, block_size, corpus.vocab_size)
    batch = _as_batch(window_WS, corpus.min_context)
    entropy = None if corpus.log_prob is None else float(-corpus.log_prob(window_WS).mean())
    return EvalSet(batch, entropy, _bytes_per_token(corpus, batch))


def _bytes_per_token(corpus: OpenCorpus, batch: Batch) -> float | None:
    """Of the scored targets where the size of each token is known, else of the whole split."""
    if corpus.bytes_V is None:
        return corpus.val_bytes_per_token
    return float(corpus.bytes_V[batch.y_BT[batch.y_BT != UNSCORED]].mean()) or None


def _mixed_eval_set(mixture: OpenMixture, block_size: int, eval_tokens: int | None) -> EvalSet:
    share = None if eval_tokens is None else eval_tokens // len(mixture.parts)
    context = max(part.corpus.min_context for part in mixture.parts)
    for part in mixture.parts:
        _check_length(part.corpus, "val", block_size, part.name)
    sets = [make_eval_set(replace(part.corpus, min_context=context), block_size, share) for part in mixture.parts]
    parts = tuple(
        EvalPart(part.name, part.share, len(each.batch.x_BT)) for part, each in zip(mixture.parts, sets, strict=True)
    )
    x_BT, y_BT = (np.concatenate([getattr(each.batch, name) for each in sets]) for name in ("x_BT", "y_BT"))
    sizes = tuple(each.bytes_per_token for each in sets)
    shares = [part.share for part in parts]
    # The source is known only where each part scores the targets that its process was asked about.
    whole = all(part.corpus.min_context == context for part in mixture.parts)
    entropy = _mean([each.entropy for each in sets], shares) if whole else None
    return EvalSet(Batch(x_BT, y_BT), entropy, _mean(sizes, shares), parts, sizes)


def _mean(values: Sequence[float | None], shares: Sequence[float]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(map(float.__mul__, known, shares)) if len(known) == len(values) else None


def _check_length(corpus: OpenCorpus, split: str, block_size: int, name: str | None = None) -> None:
    length = min(corpus.document or 2**62, len(getattr(corpus, split)))
    if block_size + 1 > length or block_size < corpus.min_context:
        whose = f"part {name}" if name is not None else "the corpus"
        raise UserError(
            f"model.block_size={block_size}: does not fit {whose}, whose {split} split has stretches of {length} "
            f"tokens and is scored from {corpus.min_context} tokens of context on"
        )


def _check_windows(shuffle: Shuffle, block_size: int, name: str | None = None) -> None:
    if not shuffle.windows:
        whose = f"part {name}" if name is not None else "the corpus"
        raise UserError(
            f"model.block_size={block_size}: no file of {whose} has a whole window; use data.sampling=random"
        )
