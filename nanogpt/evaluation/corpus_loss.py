"""The loss of a model on a stretch of tokens, in nats per token and bits per byte, over windows of a known context.

A window scores `stride` targets, each given what stands before it in the window; with a stride of the whole context the
windows do not overlap, as in training's own evaluations. Every target from the second token on is scored once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.data.stream import UNSCORED, Batch
from nanogpt.data.tokenfiles import Tokens
from nanogpt.evaluation.running import Running
from nanogpt.evaluation.scoring import LOG_PROB, SCORED, Scorer, check_finite, take_turns

BYTES = 3  # the column after those of every row
COLUMNS = 4
ORDER_KEY = 0x436F72707573  # any constant: batches come in a fixed shuffled order, so that the figure so far is fair


@dataclass(frozen=True)
class Stretch:
    """Tokens to be scored. `document` and `min_context` are those of OpenCorpus: windows cross no document of a fixed
    length, and targets with fewer than `min_context` predecessors are left out. `bytes_V` is the size of each token's
    text in UTF-8 (end-of-text tokens have none); None where tokens stand for no text."""

    tokens: Tokens
    bytes_V: NDArray[np.int64] | None
    document: int | None = None
    min_context: int = 1


@dataclass(frozen=True)
class Windows:
    """How a stretch is cut: `stride` targets a window, seen from at most `block_size` tokens."""

    length: int
    block_size: int
    stride: int
    documents: int = 1
    min_context: int = 1

    @property
    def per_document(self) -> int:
        return -(-(self.length - 1) // self.stride)

    @property
    def total(self) -> int:
        return self.per_document * self.documents

    def spread(self, limit: int | None) -> NDArray[np.int64]:
        """The numbers of at most `limit` windows, evenly spread; None: all."""
        count = self.total if limit is None else min(limit, self.total)
        return np.arange(count, dtype=np.int64) * self.total // count

    def rows(self, tokens: Tokens, numbers: NDArray[np.int64]) -> Batch:
        """Some windows as a batch. The last of a document may be shorter, and is filled up on its right."""
        start_B1 = (numbers // self.per_document * self.length)[:, None]
        first_B1 = (numbers % self.per_document * self.stride)[:, None]  # the input of the first scored target
        begin_B1 = np.maximum(0, first_B1 - (self.block_size - self.stride))
        place_BS = begin_B1 + np.arange(min(self.block_size, self.length - 1) + 1)
        tokens_BS = np.asarray(tokens[start_B1 + np.minimum(place_BS, self.length - 1)]).astype(np.int64)
        target_BT = place_BS[:, 1:]  # the target's place in its document
        in_turn_BT = (target_BT > first_B1) & (target_BT <= first_B1 + self.stride) & (target_BT < self.length)
        seen_BT = target_BT - begin_B1  # tokens that it is predicted from
        scored_BT = in_turn_BT & (seen_BT >= self.min_context)
        return Batch(tokens_BS[:, :-1], np.where(scored_BT, tokens_BS[:, 1:], UNSCORED))

    @property
    def mean_context(self) -> float:
        """Tokens that a target is predicted from, on average, far from a document's beginning."""
        return self.block_size - (self.stride - 1) / 2


@dataclass(frozen=True)
class CorpusLoss:
    """`loss` in nats per token, with its standard error over windows; `bytes` None where tokens stand for no text."""

    loss: float
    stderr: float | None
    tokens: int
    bytes: int | None
    windows: int
    of_windows: int
    block_size: int
    stride: int
    mean_context: float

    @property
    def perplexity(self) -> float:
        """exp(loss): per token, so not to be compared between tokenizers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that it takes to write the text down, end-of-text tokens included, per byte of its UTF-8."""
        return self.loss * self.tokens / (math.log(2) * self.bytes) if self.bytes else None


def cut(stretch: Stretch, block_size: int, stride: int | None) -> Windows:
    """The windows of a stretch. Raises UserError for a stretch too short, and for a stride that no window can have."""
    if stride is not None and not 1 <= stride <= block_size:
        raise UserError(f"eval: --stride {stride}: expected 1 to {block_size}, the model's context")
    length = stretch.document or len(stretch.tokens)
    if len(stretch.tokens) < length or length < stretch.min_context + 1:
        raise UserError(f"eval: {len(stretch.tokens)} tokens are too few to score: expected 2 or more")
    stride = stride or block_size
    documents = len(stretch.tokens) // length
    return Windows(length, block_size, stride, documents, stretch.min_context)


def score_corpus(
    scorer: Scorer,
    stretch: Stretch,
    stride: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    running: Running | None = None,
) -> CorpusLoss:
    """The loss on all windows, or on `limit` of them, evenly spread; all ranks get the same."""
    windows = cut(stretch, scorer.block_size, stride)
    numbers = windows.spread(limit)
    at_once = scorer.rows_at_once(min(scorer.block_size, windows.length - 1), batch_size)
    batches = np.array_split(numbers, range(at_once, len(numbers), at_once))
    order = np.random.Generator(np.random.Philox(key=ORDER_KEY)).permutation(len(batches)).tolist()

    def score(turn: int) -> Tensor:
        batch = windows.rows(stretch.tokens, batches[order[turn]])
        sums = scorer.sums(batch)
        return torch.cat([sums, _bytes_of(batch, stretch.bytes_V).to(sums)], dim=1)

    found, done = np.zeros((len(numbers), COLUMNS)), 0
    for _, sums in take_turns([len(batches[each]) for each in order], score, COLUMNS, scorer.team):
        check_finite(sums)
        found[done : done + len(sums)] = sums.numpy()
        done += len(sums)
        if running is not None and running.is_due():
            loss = -found[:done, LOG_PROB].sum() / found[:done, SCORED].sum()
            running.say(done, len(numbers), "windows", f"loss {loss:.4f}")
    if running is not None:
        running.end()
    return _sum_up(found, windows, stretch.bytes_V is not None)


def _bytes_of(batch: Batch, bytes_V: NDArray[np.int64] | None) -> Tensor:
    """Bytes of the scored targets of each row, (B, 1)."""
    if bytes_V is None:
        return torch.zeros(len(batch.y_BT), 1)
    scored_BT = batch.y_BT != UNSCORED
    return torch.from_numpy(np.where(scored_BT, bytes_V[np.maximum(batch.y_BT, 0)], 0).sum(axis=1)[:, None])


def _sum_up(found: NDArray[np.float64], windows: Windows, has_bytes: bool) -> CorpusLoss:
    loss_W, count_W = -found[:, LOG_PROB], found[:, SCORED]
    some = count_W > 0  # a document's last window may hold nothing that has enough context
    means_W = loss_W[some] / count_W[some]
    stderr = float(means_W.std(ddof=1)) / math.sqrt(len(means_W)) if len(means_W) > 1 else None
    return CorpusLoss(
        loss=float(loss_W.sum() / count_W.sum()),
        stderr=stderr,
        tokens=int(count_W.sum()),
        bytes=int(found[:, BYTES].sum()) if has_bytes else None,
        windows=len(found),
        of_windows=windows.total,
        block_size=windows.block_size,
        stride=windows.stride,
        mean_context=windows.mean_context,
    )
