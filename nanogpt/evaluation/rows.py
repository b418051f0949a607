"""What of a text and its continuation goes through the model at once, whatever the length of its context."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Token ids of a context and of what may follow it; both hold at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.context, "a continuation has something to follow"
        assert self.continuation, "something is scored"

    @property
    def length(self) -> int:
        """Positions that a model needs to see all of it: the last token is only a target."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Row:
    """Tokens of which the last `scored` are targets, each given those before it; at most block_size + 1."""

    tokens: tuple[int, ...]
    scored: int


def rows_of(pair: Pair, block_size: int) -> list[Row]:
    """The rows that score a pair, each token of the continuation once.

    What does not fit is cut from the context's beginning, as lm-evaluation-harness does. A continuation that is itself
    longer than the context of the model is scored in pieces of block_size tokens, the last with all the context it has
    room for (as its rolling log-likelihoods are).
    """
    tokens, left = (*pair.context, *pair.continuation), len(pair.continuation)
    rows = []
    while left > 0:
        scored = min(left, block_size)
        end = len(tokens) - left + scored
        rows.append(Row(tokens[max(0, end - block_size - 1) : end], scored))
        left -= scored
    return rows


def is_cut(pair: Pair, block_size: int) -> bool:
    """Whether a model of this context cannot see all of a pair."""
    return pair.length > block_size


def longest(rows: Sequence[Row]) -> int:
    """Positions of the longest row."""
    return max(len(row.tokens) - 1 for row in rows)
