"""What one forward pass hands to every application of every block.

A block that is used twice has two applications: caches, statistics and auxiliary losses are kept by application.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from nanogpt.model.cache import Cache
from nanogpt.model.layers import Rotation


class Routed(NamedTuple):
    """What a routed feed-forward layer leaves behind in one application: its losses and its statistics."""

    application: int
    auxiliary_loss: Tensor | None  # weighted, to be added to the cross-entropy; None where there is none
    statistics: dict[str, Tensor]  # detached sums over the tokens, see nanogpt/model/router.py:statistics
    router: int  # index in GPT.routers: the applications of a shared block have one router


@dataclass
class Context:
    """One forward pass over T tokens, which come after S tokens in the cache. `routed` is filled as it goes along."""

    mask_TS: Tensor | None  # (T, S + T): 0 where a token may look, -inf after it; None selects the fused kernel
    rotation: Rotation | None  # of the new tokens
    routed: list[Routed] = field(default_factory=list)
    cache: Cache | None = None  # None where nothing is kept, as in training

    @property
    def start(self) -> int:
        """The position of the first of the new tokens; anything that depends on positions counts from here."""
        return 0 if self.cache is None else self.cache.length
