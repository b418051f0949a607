"""What one forward pass hands to every application of every block.

A block that is used twice has two applications: caches, statistics and auxiliary losses are kept by application.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from nanogpt.model.layers import Rotation


class Routed(NamedTuple):
    """What a routed feed-forward layer leaves behind in one application: its losses and its statistics."""

    application: int
    auxiliary_loss: Tensor | None  # weighted, to be added to the cross-entropy; None where there is none
    statistics: dict[str, Tensor]  # detached sums over the tokens, see nanogpt/model/router.py:statistics
    router: int  # index in GPT.routers: the applications of a shared block have one router


@dataclass
class Context:
    """One forward pass. `routed` is filled as it goes along."""

    mask_TT: Tensor | None  # 0 on and below the diagonal, -inf above; None selects the fused kernel
    rotation: Rotation | None
    routed: list[Routed] = field(default_factory=list)

    @property
    def start(self) -> int:
        """The position of the first of the tokens; anything that depends on positions counts from here."""
        return 0
