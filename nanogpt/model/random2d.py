"""Random two-dimensional recurrence: three blocks, applied along two axes as often as a draw says.

Levels i = 1..n are made by the block V (vertical) and each goes h_i times through H (horizontal):

    z_i = V(x) (parallel) or V(z_{i-1}), z_0 = x (chained);  u_i = H^{h_i}(z_i)

Flat: y = R^r(combine(u_1, ..., u_n)). Hierarchical: neighbours are combined in pairs, c = R^{r_j}(combine(a, b)), with
an r_j of its own each time, an odd one passes up, until one is left; a single level meets no R (verifier) at all.
Shapes: B batch, T tokens, D n_embd.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.config import trunks as config
from nanogpt.config.model import Model
from nanogpt.model.chance import Distribution, between, larger, mean_of, numbers_for, shifted, total, uniform
from nanogpt.model.context import Context
from nanogpt.model.trunk import Application, Plan, Schedule, Trunk
from parametrization import Rules

VERTICAL, HORIZONTAL, VERIFIER = range(3)


class Counts(NamedTuple):
    """A schedule: h_1, ..., h_n, and r once (flat) or for each of the n - 1 combinations (hierarchical)."""

    horizontal: tuple[int, ...]
    verifier: tuple[int, ...]


class Random2D(Trunk):
    """The counts are drawn for every step from the seed and the step; evaluation has fixed ones."""

    drawn = True
    one_graph = False

    def __init__(self, model: Model, rules: Rules, seed: int = 0) -> None:
        super().__init__(model, rules, seed)
        # A single level meets no verifier where only pairs do.
        self.skips_blocks = self.arm.order == "hierarchical" and self.arm.vertical[0] == 1

    @staticmethod
    def blocks_of(model: Model) -> int:
        return 3

    @staticmethod
    def depth_of(model: Model) -> float:
        """The longest path through the blocks, in expectation: what adds up along the residual stream."""
        return _longest_path(_arm(model))

    @classmethod
    def kept(cls, model: Model) -> tuple[int, int]:
        """The largest counts: with ranges this small they are drawn. Levels share their inputs with one another."""
        arm = _arm(model)
        levels, horizontal, verifier = (most for _, most in (arm.vertical, arm.horizontal, arm.verifier))
        applications = levels * (1 + horizontal) + _combinations(arm, levels) * verifier
        return applications, -(levels - 1) * model.n_embd

    @property
    def arm(self) -> config.Random2D:
        return _arm(self.model)

    def draw(self, step: int) -> Schedule:
        numbers, arm = numbers_for(self.seed, step, "counts"), self.arm
        levels = between(*arm.vertical, numbers)
        horizontal = tuple(between(*arm.horizontal, numbers) for _ in range(levels))
        return Counts(horizontal, tuple(between(*arm.verifier, numbers) for _ in range(_combinations(arm, levels))))

    def evaluation(self) -> Schedule:
        """By default the vertical mean rounded up, the others down: for 1 to 4, 11 (flat) or 13 applications."""
        arm = self.arm
        levels = arm.eval_vertical or math.ceil(sum(arm.vertical) / 2)
        return _even(
            arm, levels, arm.eval_horizontal or sum(arm.horizontal) // 2, arm.eval_verifier or sum(arm.verifier) // 2
        )

    def parse_depth(self, text: str) -> Schedule:
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and 0 < int(part) <= config.MOST_2D for part in parts):
            raise UserError(
                f"depth {text}: expected VERTICALxHORIZONTALxVERIFIER, as in 3x2x2, each from 1 to {config.MOST_2D}"
            )
        return _even(self.arm, *map(int, parts))

    def plan(self, schedule: Schedule = None) -> Plan:
        counts: Counts = schedule or self.evaluation()
        levels = ((VERTICAL, *itertools.repeat(HORIZONTAL, times)) for times in counts.horizontal)
        blocks = [*itertools.chain.from_iterable(levels), *itertools.repeat(VERIFIER, sum(counts.verifier))]
        return tuple(map(Application, blocks))

    def usage(self) -> Mapping[Application, float]:
        arm = self.arm
        levels, horizontal, verifier = (sum(ends) / 2 for ends in (arm.vertical, arm.horizontal, arm.verifier))
        expected = {
            VERTICAL: levels,
            HORIZONTAL: levels * horizontal,
            VERIFIER: verifier if arm.order == "flat" else (levels - 1) * verifier,
        }
        return {Application(block): times for block, times in expected.items()}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        counts: Counts = self.schedule()
        numbers, verifier = itertools.count(), iter(counts.verifier)

        def apply(block: int, x_BTD: Tensor, times: int) -> Tensor:
            for _ in range(times):
                x_BTD = self.blocks[block](x_BTD, context, next(numbers))
            return x_BTD

        below_BTD, levels = x_BTD, []
        for times in counts.horizontal:
            below_BTD = apply(VERTICAL, x_BTD if self.arm.levels == "parallel" else below_BTD, 1)
            levels.append(apply(HORIZONTAL, below_BTD, times))
        if self.arm.order == "flat":
            return apply(VERIFIER, self._combine(levels), next(verifier))
        while len(levels) > 1:
            pairs = (levels[start : start + 2] for start in range(0, len(levels), 2))
            levels = [apply(VERIFIER, self._combine(p), next(verifier)) if len(p) == 2 else p[0] for p in pairs]
        return levels[0]

    def _combine(self, levels: list[Tensor]) -> Tensor:
        sum_BTD = functools.reduce(torch.add, levels)
        return sum_BTD / len(levels) if self.arm.combine == "mean" else sum_BTD


def _arm(model: Model) -> config.Random2D:
    assert isinstance(model.trunk, config.Random2D)
    return model.trunk


def _combinations(arm: config.Random2D, levels: int) -> int:
    return 1 if arm.order == "flat" else levels - 1


def _even(arm: config.Random2D, levels: int, horizontal: int, verifier: int) -> Counts:
    return Counts((horizontal,) * levels, (verifier,) * _combinations(arm, levels))


@functools.cache
def _longest_path(arm: config.Random2D) -> float:
    levels = uniform(*arm.vertical)
    return mean_of(levels, lambda count: mean_of(_path(arm, count)))


def _path(arm: config.Random2D, levels: int) -> Distribution:
    """The law of the longest path's length at a number of levels; the paths of chained levels share their V's."""
    ends = list(_level_paths(arm, levels))
    verifier = uniform(*arm.verifier)
    if arm.order == "flat":
        return total(functools.reduce(larger, ends), verifier)
    while len(ends) > 1:
        pairs = (ends[start : start + 2] for start in range(0, len(ends), 2))
        ends = [total(larger(*pair), verifier) if len(pair) == 2 else pair[0] for pair in pairs]
    return ends[0]


def _level_paths(arm: config.Random2D, levels: int) -> Iterator[Distribution]:
    for level in range(1, levels + 1):
        yield shifted(uniform(*arm.horizontal), level if arm.levels == "chained" else 1)
