"""Batches as a pure function of (seed, step), and the fixed windows that every evaluation scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.data.opening import OpenCorpus

UNSCORED = -1  # the target that the loss leaves out

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, int64 [B, T]; a target of UNSCORED does not enter the loss."""

    x_BT: Ints
    y_BT: Ints


def _cut(tokens: NDArray[Any], starts_B: Ints, block_size: int, min_context: int) -> Batch:
    window_BS = tokens[starts_B[:, None] + np.arange(block_size + 1)].astype(np.int64)
    y_BT = window_BS[:, 1:].copy()
    # The target at position t has t + 1 predecessors in the block.
    y_BT[:, : min_context - 1] = UNSCORED
    return Batch(window_BS[:, :-1], y_BT)


@dataclass(frozen=True)
class TrainStream:
    """Random windows of the training split; batch number `step` is the same whoever asks, and when."""

    corpus: OpenCorpus
    batch_size: int
    block_size: int
    seed: int

    def __post_init__(self) -> None:
        _check_length(self.corpus, "train", self.block_size)

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step` (from 0), drawn by the counter-based Philox generator: O(1) to seek."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        length = self.corpus.document or len(self.corpus.train)
        per_document = length - self.block_size
        draw_B = rng.integers(0, per_document * (len(self.corpus.train) // length), size=self.batch_size)
        starts_B = draw_B // per_document * length + draw_B % per_document
        return _cut(self.corpus.train, starts_B, self.block_size, self.corpus.min_context)


@dataclass(frozen=True)
class EvalSet:
    """Fixed windows, evenly spread over the validation split, that do not overlap.

    `entropy` is the true cross-entropy of the source on the scored targets, nats per token; None where unknown.
    """

    batch: Batch
    entropy: float | None

    @property
    def scored(self) -> int:
        return int((self.batch.y_BT != UNSCORED).sum())


def make_eval_set(corpus: OpenCorpus, block_size: int, eval_tokens: int | None) -> EvalSet:
    """At most `eval_tokens` tokens (None: all that fill whole windows) of the validation split."""
    _check_length(corpus, "val", block_size)
    length = corpus.document or len(corpus.val)
    per_document = (length - 1) // block_size
    total = per_document * (len(corpus.val) // length)
    count = total if eval_tokens is None else max(1, min(total, eval_tokens // block_size))
    index_W = np.arange(count, dtype=np.int64) * total // count
    starts_W = index_W // per_document * length + index_W % per_document * block_size
    batch = _cut(corpus.val, starts_W, block_size, corpus.min_context)
    if corpus.log_prob is None:
        return EvalSet(batch, None)
    window_WS = corpus.val[starts_W[:, None] + np.arange(block_size + 1)]
    return EvalSet(batch, float(-corpus.log_prob(window_WS).mean()))


def _check_length(corpus: OpenCorpus, split: str, block_size: int) -> None:
    length = min(corpus.document or 2**62, len(getattr(corpus, split)))
    if block_size + 1 > length or block_size < corpus.min_context:
        raise UserError(
            f"model.block_size={block_size}: does not fit the corpus, whose {split} split has stretches of {length} "
            f"tokens and is scored from {corpus.min_context} tokens of context on"
        )
