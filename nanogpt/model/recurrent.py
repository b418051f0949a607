"""A core of blocks applied in a loop, between a prelude and a coda (arXiv 2502.05171, section 3).

    e = prelude(x);  s_0 by state_init;  s_t = core(inject(s_{t-1}, e)), t = 1..r;  coda(s_r)

Shapes: B batch, T tokens, D n_embd.
"""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nanogpt.config import UserError
from nanogpt.config import trunks as config
from nanogpt.config.model import Model
from nanogpt.model.chance import draw_loops, law_of, mean_of, numbers_for, quantile, seed_for
from nanogpt.model.context import Context
from nanogpt.model.layers import TRAINING, Linear
from nanogpt.model.trunk import Application, Plan, Schedule, Trunk
from parametrization import Role, Rules

LIKELY = 0.9999
CLIP = 3.0  # standard deviations at which the noise of the first state is cut


class Recurrent(Trunk):
    """A schedule is the number of loops. Only the last `backprop_loops` of them get gradients, where that is set."""

    def __init__(self, model: Model, rules: Rules, seed: int = 0) -> None:
        super().__init__(model, rules, seed)
        arm = self.arm = _arm(model)
        self.drawn = arm.depth.kind != "fixed"
        self.one_graph = not self.drawn and arm.state_init != "like_embed"
        self.adapter: Linear | None = None
        if arm.inject == "concat":
            self.adapter = Linear(2 * model.n_embd, model.n_embd, Role.HIDDEN, bias=False)
        # As large as an embedding is where it enters the trunk.
        self.noise_std = rules.roles[Role.EMBEDDING].init_std * rules.input_multiplier
        self._noise: tuple[int, Tensor] | None = None

    @staticmethod
    def blocks_of(model: Model) -> int:
        arm = _arm(model)
        return arm.prelude + arm.core + arm.coda

    @staticmethod
    def depth_of(model: Model) -> float:
        """prelude + E[loops] core + coda: a constant, so that a loop is the same function at every number of loops."""
        arm = _arm(model)
        return arm.prelude + mean_of(law_of(arm.depth)) * arm.core + arm.coda

    @classmethod
    def kept(cls, model: Model) -> tuple[int, int]:
        """More loops than LIKELY allows are too rare to be planned for; the adapter keeps what it multiplies."""
        arm = _arm(model)
        loops = min(quantile(law_of(arm.depth), LIKELY), arm.backprop_loops or config.MOST)
        between = 2 * model.n_embd * loops if arm.inject == "concat" else 0
        return arm.prelude + loops * arm.core + arm.coda, between

    def draw(self, step: int) -> Schedule:
        depth = self.arm.depth
        return draw_loops(depth, numbers_for(self.seed, step, "loops")) if self.drawn else depth.typical

    def evaluation(self) -> Schedule:
        return self.arm.eval_loops or self.arm.depth.typical

    def parse_depth(self, text: str) -> Schedule:
        if not text.isdecimal() or not 0 < int(text) <= config.MOST:
            raise UserError(f"depth {text}: expected a number of loops from 1 to {config.MOST}")
        return int(text)

    def plan(self, schedule: Schedule = None) -> Plan:
        arm, loops = self.arm, schedule or self.evaluation()
        first_core, first_coda = arm.prelude, arm.prelude + arm.core
        loop = range(first_core, first_coda)
        return (
            *map(Application, range(first_core)),
            *(Application(block, turn >= self._forward_only(loops)) for turn in range(loops) for block in loop),
            *map(Application, range(first_coda, len(self.blocks))),
        )

    def _forward_only(self, loops: int) -> int:
        """How many loops run for their value alone."""
        return 0 if self.arm.backprop_loops is None else max(0, loops - self.arm.backprop_loops)

    def usage(self) -> Mapping[Application, float]:
        arm, law = self.arm, law_of(self.arm.depth)
        forward_only = mean_of(law, self._forward_only)
        with_gradients = mean_of(law) - forward_only
        core = range(arm.prelude, arm.prelude + arm.core)
        once = {Application(block): 1.0 for block in range(len(self.blocks)) if block not in core}
        found = once | {Application(block): with_gradients for block in core}
        return found | {Application(block, False): forward_only for block in core if forward_only}

    def between(self, usage: Mapping[Application, float]) -> dict[str, float]:
        """One product with the adapter per loop."""
        if self.adapter is None:
            return {}
        with_gradients, forward_only = self._loops(usage)
        return {"adapter": self.adapter.flops_per_token() * (with_gradients + forward_only / TRAINING)}

    def parameters_between(self, usage: Mapping[Application, float]) -> float:
        return 0.0 if self.adapter is None else self.adapter.weight.numel() * sum(self._loops(usage))

    def _loops(self, usage: Mapping[Application, float]) -> tuple[float, float]:
        """Loops with and without gradients: the core's first block counts them."""
        first = self.arm.prelude
        return usage.get(Application(first), 0.0), usage.get(Application(first, False), 0.0)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        loops, arm = self.schedule(), self.arm
        input_BTD = self._run(0, arm.prelude, x_BTD, context, 0)
        state_BTD, application = self._first_state(input_BTD, context.start), arm.prelude
        for turn in range(loops):
            with torch.no_grad() if turn < self._forward_only(loops) else contextlib.nullcontext():
                state_BTD = self._inject(state_BTD, input_BTD)
                state_BTD = self._run(arm.prelude, arm.core, state_BTD, context, application)
            application += arm.core
        return self._run(arm.prelude + arm.core, arm.coda, state_BTD, context, application)

    def _run(self, first: int, count: int, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        for offset in range(count):
            x_BTD = self.blocks[first + offset](x_BTD, context, application + offset)
        return x_BTD

    def _inject(self, state_BTD: Tensor, input_BTD: Tensor) -> Tensor:
        if self.adapter is not None:
            return self.adapter(torch.cat((state_BTD, input_BTD), dim=-1))
        return state_BTD + input_BTD if self.arm.inject == "add" else state_BTD

    def _first_state(self, input_BTD: Tensor, start: int) -> Tensor:
        if self.arm.state_init == "input":
            return input_BTD
        if self.arm.state_init == "zero":
            return torch.zeros_like(input_BTD)
        return self._position_noise(input_BTD)[start : start + input_BTD.shape[1]].expand_as(input_BTD)

    def _position_noise(self, like_BTD: Tensor) -> Tensor:
        """Truncated normal noise, (block_size, D): one row per position for all sequences, whatever their batch.

        Drawn from the seed and, in training, the step; in evaluation it is always the same.
        """
        key = seed_for(self.seed, self.step if self.training else None, "state")
        if self._noise is None or self._noise[0] != key or self._noise[1].device != like_BTD.device:
            noise = torch.empty(self.model.block_size, self.model.n_embd, device="cpu")
            generator, reach = torch.Generator().manual_seed(key), CLIP * self.noise_std
            nn.init.trunc_normal_(noise, 0.0, self.noise_std, -reach, reach, generator=generator)
            self._noise = key, noise.to(like_BTD.device)
        return self._noise[1].to(like_BTD.dtype)


def _arm(model: Model) -> config.Recurrent:
    assert isinstance(model.trunk, config.Recurrent)
    return model.trunk
