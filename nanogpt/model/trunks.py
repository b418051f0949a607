"""How blocks are applied: a trunk is a set of unique blocks and a plan, the order in which they are used.

Parameters are counted once per block, FLOPs, statistics and cache slots once per application. A new trunk is a class
here and a line in TRUNKS. Shapes: B batch, T tokens, D n_embd.
"""

from torch import Tensor, nn

from nanogpt.config.model import Model
from nanogpt.model.attention import AttentionContext
from nanogpt.model.block import Block
from parametrization import Rules


class Trunk(nn.Module):
    """Applies `blocks[plan[0]]`, `blocks[plan[1]]`, ... in turn."""

    def __init__(self, model: Model, rules: Rules) -> None:
        super().__init__()
        self.plan = self.plan_of(model)
        self.blocks = nn.ModuleList(Block(model, rules) for _ in range(max(self.plan) + 1))

    @staticmethod
    def plan_of(model: Model) -> tuple[int, ...]:
        """The block used by each application, in order; its length is the depth on the residual path."""
        raise AssertionError("a trunk says in which order its blocks are applied")

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        for block in self.plan:
            x_BTD = self.blocks[block](x_BTD, context)
        return x_BTD

    def applied(self) -> list[Block]:
        """The block of each application, in order."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [blocks[index] for index in self.plan]


class Stack(Trunk):
    """The ordinary transformer: n_layer blocks of their own, once each."""

    @staticmethod
    def plan_of(model: Model) -> tuple[int, ...]:
        return tuple(range(model.n_layer))


TRUNKS: dict[str, type[Trunk]] = {"stack": Stack}
