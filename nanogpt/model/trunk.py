"""What a trunk is: a set of unique blocks and a plan, the order in which they are applied.

Parameters are counted once per block, FLOPs, statistics and cache slots once per application. Shapes: B batch,
T tokens, D n_embd.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from nanogpt.config import UserError
from nanogpt.config.model import Model
from nanogpt.model.block import Block
from nanogpt.model.context import Context
from parametrization import Rules


class Application(NamedTuple):
    """One use of a block; without `grad` it is run for its value alone, as truncated back-propagation does."""

    block: int
    grad: bool = True


Plan = tuple[Application, ...]
Schedule = Any  # what a trunk draws for a step: its own affair, but hashable


class Trunk(nn.Module):
    """Unique blocks and the order in which they are used. Here: `blocks[0]`, `blocks[1]`, ... as planned, in turn.

    `step` says which optimizer step is being trained, for trunks that draw a schedule per step; the evaluation
    schedule holds in evaluation and until a step is named. Draws come from (seed, step) alone, so that they are the
    same in every micro-batch, on every rank and after a resume, and nothing of them has to be saved.
    """

    drawn = False  # does each step draw a schedule of its own?
    skips_blocks = False  # whether some schedule leaves a block out altogether
    one_graph = True  # does every training step compute the same, so that one compiled graph serves them all?

    def __init__(self, model: Model, rules: Rules, seed: int = 0) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.step: int | None = None
        self._chosen: Schedule = None
        self.blocks = nn.ModuleList(self.new_block(model, rules, number) for number in range(self.blocks_of(model)))

    def new_block(self, model: Model, rules: Rules, number: int) -> Block:
        """The block of that number among those that own parameters."""
        return Block(model, rules, number)

    @staticmethod
    def blocks_of(model: Model) -> int:
        """How many blocks own parameters."""
        raise AssertionError("a trunk says how many blocks it has")

    @staticmethod
    def depth_of(model: Model) -> float:
        """Expected applications of blocks on the residual path, the depth that a parametrization follows."""
        raise AssertionError("a trunk says how deep it is")

    @classmethod
    def unique_at(cls, model: Model, depth: float) -> float:
        """How many different blocks a trunk of this kind has on a residual path of `depth` applications."""
        return min(cls.blocks_of(model), depth)

    @classmethod
    def kept(cls, model: Model) -> tuple[int, int]:
        """For the memory estimate: the applications of blocks whose activations a backward pass needs in the largest
        likely schedule, and how many numbers per token are kept between them.
        """
        return round(cls.depth_of(model)), 0

    def schedule(self) -> Schedule:
        """The schedule of the present pass: drawn from the seed and the step in training, fixed in evaluation."""
        if self.training and not self.drawn:
            return self.draw(0)  # not by the step: a compiled graph that looked at it would be compiled every step
        if self.training and self.step is not None:
            return self.draw(self.step)
        return self.evaluation() if self._chosen is None else self._chosen

    def draw(self, step: int) -> Schedule:
        """The schedule of one optimizer step."""
        return self.evaluation()

    def evaluation(self) -> Schedule:
        """The schedule of evaluation and generation where nothing else is chosen."""
        return None

    def evaluate_at(self, depth: str | int | None) -> None:
        """Choose the evaluation schedule by what a person writes for a depth; None goes back to the config's.

        Raises UserError for a trunk that has one depth only, and for a text that names no depth.
        """
        self._chosen = None if depth is None else self.parse_depth(str(depth))

    def parse_depth(self, text: str) -> Schedule:
        raise UserError(f"depth {text}: the trunk {self.model.trunk.kind} has one depth, {len(self.plan())}")

    def plan(self, schedule: Schedule = None) -> Plan:
        """The applications of one pass, in order; by default those of evaluation."""
        raise AssertionError("a trunk says in which order its blocks are applied")

    def usage(self) -> Mapping[Application, float]:
        """How often each block is applied in training, in expectation over the schedules."""
        return Counter(self.plan())

    def usage_of(self, schedule: Schedule) -> Mapping[Application, float]:
        """How often each block is applied under one schedule."""
        return Counter(self.plan(schedule))

    def between(self, usage: Mapping[Application, float]) -> dict[str, float]:
        """Training FLOPs per token of what is computed between the blocks, by name."""
        return {}

    def parameters_between(self, usage: Mapping[Application, float]) -> float:
        """Parameters outside the blocks, as often as they are applied."""
        return 0.0

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        for application, (block, _) in enumerate(self.plan(self.schedule())):
            x_BTD = self.blocks[block](x_BTD, context, application)
        return x_BTD

    def unique(self) -> list[Block]:
        """The blocks that own parameters, each once."""
        return [block for block in self.blocks if isinstance(block, Block)]
