"""Log-probabilities of continuations, batch after batch, by one process or by several that take turns.

Shapes: B rows of a batch, T positions. A batch and what it gives do not depend on how many processes there are.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.data.stream import UNSCORED, Batch
from nanogpt.evaluate import DOUBLE, LOGITS_AT_ONCE, TOKENS_AT_ONCE, Autocast
from nanogpt.evaluation.rows import Row
from nanogpt.model import GPT
from nanogpt.team import ALONE, Team

CPU_LOGITS_AT_ONCE = 2**22  # 16 MiB, which the C library keeps for the next ones: larger blocks cost page faults
LOG_PROB, LIKELIEST, SCORED = range(3)  # the columns of a row's sums


@dataclass(frozen=True)
class Scorer:
    """A model in evaluation mode, on its device; `team` are the processes that share the work."""

    model: GPT
    autocast: Autocast
    team: Team = ALONE

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def block_size(self) -> int:
        return self.model.config.block_size

    @property
    def vocab_size(self) -> int:
        """How many kinds of tokens the model knows, those that only pad its vocabulary included."""
        return self.model.embedding.weight.shape[0]

    @property
    def _logits_at_once(self) -> int:
        return CPU_LOGITS_AT_ONCE if self.device.type == "cpu" else LOGITS_AT_ONCE

    def rows_at_once(self, longest: int, asked: int | None) -> int:
        """Rows of a batch: what was asked for, else as many as fill the memory that is usual here."""
        return asked or max(1, TOKENS_AT_ONCE // longest)

    @torch.no_grad()
    def sums(self, batch: Batch) -> Tensor:
        """Of each row, over its scored targets: log-probability in nats, 1 where all are likeliest, count; (B, 3).

        Raises UserError where the model's logits are not finite.
        """
        assert not self.model.training, "scored in the mode of inference"
        x_BT, y_BT = (torch.from_numpy(part).to(self.device) for part in (batch.x_BT, batch.y_BT))
        with self.autocast():
            found = self.model.likelihoods(x_BT, y_BT, max(1, self._logits_at_once // self.vocab_size))
        double = DOUBLE.get(self.device.type, torch.float64)
        log_prob_B = found.log_prob_BT.to(double).sum(dim=1)
        columns = (log_prob_B, found.likeliest_BT.all(dim=1).to(double), (y_BT != UNSCORED).sum(dim=1).to(double))
        return torch.stack(columns, dim=1)


def take_turns(
    sizes: Sequence[int], score: Callable[[int], Tensor], columns: int, team: Team = ALONE
) -> Iterator[tuple[int, Tensor]]:
    """Number and sums, (rows, columns) on the CPU, of every batch in order; batch k has `sizes[k]` rows.

    In each round every rank scores one batch and all get all of them, so that any rank can say how it goes.
    """
    dtype = DOUBLE.get(team.device.type, torch.float64)
    for first in range(0, len(sizes), team.size):
        rows = sizes[first : first + team.size]
        ends = [0, *itertools.accumulate(rows)]
        sums = torch.zeros(ends[-1], columns, dtype=dtype, device=team.device)
        if team.rank < len(rows):
            sums[ends[team.rank] : ends[team.rank + 1]] = score(first + team.rank).to(sums)
        parts = team.add(sums).cpu().split(list(rows))
        yield from ((first + place, part) for place, part in enumerate(parts))


def padded(rows: Sequence[Row]) -> Batch:
    """Rows of different lengths as one batch, filled up on the right, where no scored position looks."""
    width = max(len(row.tokens) for row in rows) - 1
    x_BT, y_BT = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), UNSCORED, np.int64)
    for place, row in enumerate(rows):
        length = len(row.tokens) - 1
        x_BT[place, :length] = row.tokens[:-1]
        y_BT[place, length - row.scored : length] = row.tokens[-row.scored :]
    return Batch(x_BT, y_BT)


def score_rows(scorer: Scorer, rows: Sequence[Row], at_once: int) -> Tensor:
    """The sums of some rows, (rows, 3), at most `at_once` of them in one batch."""
    parts = [scorer.sums(padded(rows[first : first + at_once])) for first in range(0, len(rows), at_once)]
    return torch.cat(parts)


def check_finite(sums: Tensor) -> None:
    """Raises UserError where a model gave no numbers."""
    if not torch.isfinite(sums).all():
        raise UserError("eval: the model's logits are not finite: its training has diverged")
