"""How blocks are applied: a trunk is a set of unique blocks and a plan, the order in which they are used.

Parameters are counted once per block, FLOPs, statistics and cache slots once per application. A new trunk is a class
here and a line in TRUNKS. Shapes: B batch, T tokens, D n_embd.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from nanogpt.config.model import Model
from nanogpt.model.block import Block
from nanogpt.model.context import Context
from parametrization import Rules


class Application(NamedTuple):
    """One use of a block; without `grad` it is run for its value alone, as truncated back-propagation does."""

    block: int
    grad: bool = True


Plan = tuple[Application, ...]
Schedule = Any  # what a trunk draws for a step: its own affair


class Trunk(nn.Module):
    """Unique blocks and the order in which they are used. Here: `blocks[0]`, `blocks[1]`, ... as planned, in turn.

    `step` says which optimizer step is being trained, for trunks that draw a schedule per step; the evaluation
    schedule holds in evaluation and until a step is named.
    """

    skips_blocks = False  # whether some schedule leaves a block out altogether

    def __init__(self, model: Model, rules: Rules) -> None:
        super().__init__()
        self.model = model
        self.step: int | None = None
        count = max(application.block for application in self.plan()) + 1
        self.blocks = nn.ModuleList(Block(model, rules) for _ in range(count))

    @staticmethod
    def depth_of(model: Model) -> float:
        """Expected applications of blocks on the residual path, the depth that a parametrization follows."""
        raise AssertionError("a trunk says how deep it is")

    def schedule(self) -> Schedule:
        """The schedule of the present pass: drawn from the seed and the step in training, fixed in evaluation."""
        return None

    def plan(self, schedule: Schedule = None) -> Plan:
        """The applications of one pass, in order."""
        raise AssertionError("a trunk says in which order its blocks are applied")

    def usage(self) -> Mapping[Application, float]:
        """How often each block is applied in training, in expectation over the schedules."""
        return Counter(self.plan())

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        for application, (block, _) in enumerate(self.plan(self.schedule())):
            x_BTD = self.blocks[block](x_BTD, context, application)
        return x_BTD

    def unique(self) -> list[Block]:
        """The blocks that own parameters, each once."""
        return [block for block in self.blocks if isinstance(block, Block)]


class Stack(Trunk):
    """The ordinary transformer: n_layer blocks of their own, once each."""

    @staticmethod
    def depth_of(model: Model) -> float:
        return model.n_layer

    def plan(self, schedule: Schedule = None) -> Plan:
        return tuple(map(Application, range(self.model.n_layer)))


TRUNKS: dict[str, type[Trunk]] = {"stack": Stack}
