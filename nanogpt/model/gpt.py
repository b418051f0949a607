"""The GPT: embeddings, a trunk of blocks, a final norm and a head, with its initialisation, counts and FLOPs.

Shapes: B batch, T tokens, S tokens they may look at, D n_embd, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import Config, UserError
from nanogpt.config.model import Model
from nanogpt.config.parametrization import Parametrization
from nanogpt.model.block import Block
from nanogpt.model.cache import Cache
from nanogpt.model.context import Context, Routed
from nanogpt.model.dense import FeedForward
from nanogpt.model.experts import Experts, Path
from nanogpt.model.layers import TRAINING, Embedding, Layer, Linear, Norm, Rotation, rotation_table
from nanogpt.model.router import Router
from nanogpt.model.trunks import TRUNKS, Application, Schedule
from parametrization import Role, Rules, Shape, scaling_rules

IGNORED = -1  # a target that is not scored
PARAMETER_GROUPS = ("embedding", "position", "hidden", "norm", "bias", "readout", "router")
EXPLICIT_UP_TO = 1024  # tokens; above it torch's fused kernel wins on CPUs too


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by group, each tensor counted once; a tied head is part of `embedding`.

    `non_embedding` = total - token and position embeddings - head. `active` are those that act on one token: of a
    mixture's experts the chosen ones, once per unique router. `applied` counts
    the active ones of a block once per application, in expectation.
    """

    embedding: int
    position: int
    hidden: int
    norm: int
    bias: int
    readout: int
    router: int
    total: int
    non_embedding: int
    active: int
    applied: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class StepCost(NamedTuple):
    """Of one optimizer step: training FLOPs per token, and how many blocks were applied."""

    flops_per_token: int
    applications: int


class Losses(NamedTuple):
    """One micro-batch: mean cross-entropy in nats, the sum of the weighted auxiliary losses (None: there are none)."""

    cross_entropy: Tensor
    auxiliary: Tensor | None
    routed: list[Routed]

    @property
    def total(self) -> Tensor:
        """What is differentiated."""
        return self.cross_entropy if self.auxiliary is None else self.cross_entropy + self.auxiliary


class Likelihoods(NamedTuple):
    """Of each target, natural log of its probability and whether it is the likeliest; (B, T), 0 and True unscored."""

    log_prob_BT: Tensor
    likeliest_BT: Tensor


class Scores(NamedTuple):
    """Sequences that were evaluated: their summed cross-entropy in nats, (B,), and what the routers did."""

    loss_sum_B: Tensor
    routed: list[Routed]


def model_rules(model: Model, parametrization: Parametrization) -> Rules:
    """The scaling rules of this model: its own shape against the base shape the parametrization names."""
    trunk = TRUNKS[model.trunk.kind]
    depth = trunk.depth_of(model)
    shape = Shape(model.n_embd, depth, model.head_size, model.ffn_hidden, depth / trunk.unique_at(model, depth))
    base_n_embd, base_depth = parametrization.base_n_embd or model.n_embd, parametrization.base_n_layer or depth
    base = Shape(
        n_embd=base_n_embd,
        n_layer=base_depth,
        head_size=parametrization.base_head_size or model.head_size,
        ffn_hidden=parametrization.base_ffn_hidden or _base_ffn_hidden(model, base_n_embd),
        loops=parametrization.base_loops or base_depth / trunk.unique_at(model, base_depth),
    )
    return scaling_rules(
        parametrization.mode,
        shape,
        base,
        init_std=parametrization.init_std,
        input_multiplier=parametrization.input_multiplier,
        output_multiplier=parametrization.output_multiplier,
        weight_decay_rule=parametrization.weight_decay_rule,
        residual_init=parametrization.residual_init,
    )


def _base_ffn_hidden(model: Model, base_n_embd: int) -> float:
    """The base model's own width where that follows from n_embd (rounded, under SwiGLU), else one in proportion."""
    if model.ffn.hidden is None:
        return model.default_ffn_hidden(base_n_embd)
    return model.ffn.hidden * base_n_embd / model.n_embd


class GPT(nn.Module):
    """A decoder-only language model. `attention` and `expert_matmul` are those of `runtime`."""

    causal_mask_TT: Tensor | None
    rope_cos_T1K: Tensor
    rope_sin_T1K: Tensor

    def __init__(
        self,
        model: Model,
        parametrization: Parametrization,
        *,
        seed: int = 0,
        attention: str = "auto",
        expert_matmul: Path = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(model.vocab_size, int):
            raise UserError("model.vocab_size: 'auto' must be resolved from the corpus before a model is built")
        self.config = model
        self.rules = model_rules(model, parametrization)
        self.attention = attention
        self.embedding = Embedding(model.vocab_size, model.n_embd, Role.EMBEDDING)
        learned = model.position == "learned"
        self.position = Embedding(model.block_size, model.n_embd, Role.POSITION) if learned else None
        self.trunk = TRUNKS[model.trunk.kind](model, self.rules, seed)
        self.final_norm = Norm(model.n_embd, model.norm, model.bias, final=True)
        tied = model.tie_embeddings
        self.head = None if tied else Linear(model.n_embd, model.vocab_size, Role.READOUT, bias=False)
        self.routers = self._number_routers(expert_matmul)
        self._known_costs: dict[Schedule, StepCost] = {}
        self._keep_constants()
        self.initialize(seed)

    def _number_routers(self, expert_matmul: Path) -> tuple[Router, ...]:
        """The unique routers, each of which is told its place; the experts are told how to multiply."""
        for module in self.modules():
            if isinstance(module, Experts):
                module.path = expert_matmul
        routers = tuple(module for module in self.modules() if isinstance(module, Router))
        for number, router in enumerate(routers):
            router.number = number
        return routers

    def _keep_constants(self) -> None:
        """Tables that are functions of the shape alone: on the model's device, in no checkpoint."""
        size, explicit = self.config.block_size, self.attention == "explicit"
        mask = None
        if explicit or (self.attention == "auto" and size <= EXPLICIT_UP_TO):
            mask = torch.full((size, size), float("-inf")).triu(1)
        self.register_buffer("causal_mask_TT", mask, persistent=False)
        if self.config.position == "rope":
            table = rotation_table(size, self.config.head_size, self.config.rope_theta)
            self.register_buffer("rope_cos_T1K", table.cos_T1K, persistent=False)
            self.register_buffer("rope_sin_T1K", table.sin_T1K, persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill every parameter by its role; a pure function of (config, seed), drawn on the CPU.

        | role                                      | value                                               |
        |-------------------------------------------|-----------------------------------------------------|
        | embedding, position, readout              | N(0, s^2), s = parametrization.init_std             |
        | router                                    | N(0, s^2 / m^2), m as below                         |
        | hidden, attention_out, ffn_out            | N(0, s^2 / m), m the ratio of fan-ins to the base;  |
        |                                           | SP: the two outputs N(0, s^2 / (2 A)) (GPT-2), A    |
        |                                           | the expected applications of blocks, n_layer        |
        | gains of norms                            | 1                                                   |
        | biases                                    | 0                                                   |

        The factors come from `parametrization/rules.py`. Every mode draws the same numbers for one seed.
        """
        if self.embedding.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        roles = self.roles()
        for name, parameter in self.named_parameters():
            role = roles[name]
            if role.is_matrix:
                parameter.normal_(0.0, self.rules.roles[role].init_std, generator=generator)
            else:
                parameter.fill_(role.constant)

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name; none is left out and none is named twice."""
        roles = {
            f"{prefix}.{name}": module.parameter_roles[name]
            for prefix, module in self.named_modules()
            if isinstance(module, Layer)
            for name, _ in module.named_parameters(recurse=False)
        }
        assert roles.keys() == dict(self.named_parameters()).keys(), "every parameter belongs to exactly one Layer"
        return roles

    def forward(self, idx_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token at each position, (B, T, V). At most block_size tokens, those in the cache included.

        With a cache the tokens come after those it holds, and are added to it.
        """
        return self._logits(idx_BT, self._context(idx_BT, cache))

    def next_logits(self, idx_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the token after the last, (B, V): `forward` with the head applied to one position alone."""
        return self._readout(self._hidden(idx_BT, self._context(idx_BT, cache))[:, -1])

    def _logits(self, idx_BT: Tensor, context: Context) -> Tensor:
        return self._readout(self._hidden(idx_BT, context))

    def _hidden(self, idx_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self.trunk(self._embed(idx_BT, context.start), context)
        if context.cache is not None:
            context.cache.advance(idx_BT.shape[1])
        return self.final_norm(x_BTD)

    def _readout(self, x_BTD: Tensor) -> Tensor:
        """Logits of what the final norm gives; the head takes any leading shape."""
        if self.rules.output_multiplier != 1.0:
            x_BTD = x_BTD * self.rules.output_multiplier
        logits_BTV = F.linear(x_BTD, self.embedding.weight) if self.head is None else self.head(x_BTD)
        cap = self.config.logit_softcap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV.float() / cap)

    def _embed(self, idx_BT: Tensor, start: int) -> Tensor:
        x_BTD = self.embedding(idx_BT)
        if self.position is not None:
            x_BTD = x_BTD + self.position.weight[start : start + idx_BT.shape[1]]
        if self.rules.input_multiplier != 1.0:
            x_BTD = x_BTD * self.rules.input_multiplier
        if self.training and self.config.dropout > 0:
            x_BTD = F.dropout(x_BTD, self.config.dropout)
        return x_BTD

    def _context(self, idx_BT: Tensor, cache: Cache | None = None) -> Context:
        start = 0 if cache is None else cache.length
        end = start + idx_BT.shape[1]
        assert end <= self.config.block_size, f"{end} tokens in a context of {self.config.block_size}"
        rotation = None
        if self.config.position == "rope":
            rotation = Rotation(self.rope_cos_T1K[start:end], self.rope_sin_T1K[start:end])
        explicit = self.attention == "explicit" or (self.attention == "auto" and idx_BT.device.type == "cpu")
        mask = self.causal_mask_TT[start:end, :end] if explicit and self.causal_mask_TT is not None else None
        return Context(mask, rotation, cache=cache)

    def loss(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -1; the logits enter it as float32."""
        return self.losses(idx_BT, targets_BT).cross_entropy

    def losses(self, idx_BT: Tensor, targets_BT: Tensor) -> Losses:
        """What a training step minimises, cross-entropy and auxiliary losses apart, with the routers' statistics."""
        context = self._context(idx_BT)
        logits_BTV = self._logits(idx_BT, context).float()
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
        auxiliary = [routed.auxiliary_loss for routed in context.routed if routed.auxiliary_loss is not None]
        return Losses(loss, torch.stack(auxiliary).sum() if auxiliary else None, context.routed)

    def at_step(self, step: int) -> None:
        """Name the optimizer step that is about to be trained (from 0): trunks may draw their schedule from it."""
        self.trunk.step = step

    def scores(self, idx_BT: Tensor, targets_BT: Tensor) -> Scores:
        """What an evaluation adds up; of each sequence by itself, for a standard error."""
        context = self._context(idx_BT)
        logits_BTV = self._logits(idx_BT, context).float()
        targets = targets_BT.flatten()
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
        return Scores(loss.view_as(targets_BT).sum(dim=1), context.routed)

    def likelihoods(self, idx_BT: Tensor, targets_BT: Tensor, at_once: int) -> Likelihoods:
        """How likely the targets that are not -1 are. The head is applied to those alone, `at_once` of them at a time.

        Where few targets of long sequences are scored, that saves most of the logits.
        """
        scored_BT = targets_BT != IGNORED
        x_ND, y_N = self._hidden(idx_BT, self._context(idx_BT))[scored_BT], targets_BT[scored_BT]
        log_prob_BT = torch.zeros(targets_BT.shape, device=idx_BT.device)
        likeliest_BT = torch.ones_like(targets_BT, dtype=torch.bool)
        parts = zip(x_ND.split(at_once), y_N.split(at_once), strict=True)
        found = [_likelihoods(self._readout(x_PD), y_P) for x_PD, y_P in parts]
        if found:
            log_prob_BT[scored_BT] = torch.cat([part.log_prob_BT for part in found])
            likeliest_BT[scored_BT] = torch.cat([part.likeliest_BT for part in found])
        return Likelihoods(log_prob_BT, likeliest_BT)

    def flops_per_token(self, tokens: int | None = None) -> int:
        """Exact training FLOPs (forward and backward) per token in a context of `tokens`; default block_size."""
        return sum(self.flops_by_module(tokens).values())

    def flops_by_module(self, tokens: int | None = None) -> dict[str, int]:
        """Training FLOPs per token, once per application; looking up an embedding costs none."""
        length = tokens or self.config.block_size
        return self.flops_of(self.trunk.usage(), length)

    def step_cost(self, step: int) -> StepCost:
        """What one optimizer step costs per token at full block_size, with what the trunk draws for it."""
        schedule = self.trunk.draw(step)
        if schedule not in self._known_costs:
            usage = self.trunk.usage_of(schedule)
            flops = sum(self.flops_of(usage, self.config.block_size).values())
            self._known_costs[schedule] = StepCost(flops, round(sum(usage.values())))
        return self._known_costs[schedule]

    def flops_of(self, usage: Mapping[Application, float], tokens: int) -> dict[str, int]:
        """Training FLOPs per token of a plan, counted (`Counter(plan)`), or of an expected usage.

        An application without gradients costs a third, its forward pass.
        """
        found = dict.fromkeys(("attention matrices", "attention scores", "feed-forward"), 0.0)
        blocks = self.trunk.unique()
        for (index, grad), count in usage.items():
            block = blocks[index]
            share = count if grad else count / TRAINING
            scores = block.attention.score_flops_per_token(tokens)
            found["attention matrices"] += share * (block.attention.flops_per_token(tokens) - scores)
            found["attention scores"] += share * scores
            found["feed-forward"] += share * block.ffn.flops_per_token()
        found |= self.trunk.between(usage)
        return {name: round(flops) for name, flops in found.items()} | {
            "head": TRAINING * 2 * self.embedding.weight.numel()
        }

    def parameter_counts(self) -> ParameterCounts:
        """Parameters by group. Every tensor is in exactly one group, so the groups add up to the total."""
        roles = self.roles()
        groups = dict.fromkeys(PARAMETER_GROUPS, 0)
        for name, parameter in self.named_parameters():
            groups[roles[name].group] += parameter.numel()
        total = sum(groups.values())
        outside = groups["embedding"] + groups["position"] + groups["readout"]
        idle = sum(module.idle_parameters() for module in self.modules() if isinstance(module, FeedForward))
        return ParameterCounts(
            **groups,
            total=total,
            non_embedding=total - outside,
            active=total - idle,
            applied=self._applied(total - idle),
        )

    def _applied(self, active: int) -> int:
        """Active parameters, those of each block as often as it is applied, and an adapter's once per loop."""
        trunk, usage = self.trunk, self.trunk.usage()
        idle = sum(m.idle_parameters() for m in trunk.modules() if isinstance(m, FeedForward))
        outside = active - sum(parameter.numel() for parameter in trunk.parameters()) + idle
        blocks = [_active_of(block) for block in trunk.unique()]
        within = sum(times * blocks[block] for (block, _), times in usage.items())
        within += trunk.parameters_between(usage)
        return round(outside + within)


def _likelihoods(logits_NV: Tensor, y_N: Tensor) -> Likelihoods:
    """The same of N targets in a row."""
    log_prob_NV = logits_NV.float().log_softmax(dim=-1)
    return Likelihoods(log_prob_NV.gather(1, y_N[:, None]).squeeze(1), log_prob_NV.argmax(dim=-1) == y_N)


def _active_of(block: Block) -> int:
    """Parameters of one application of a block that act on one token."""
    return sum(parameter.numel() for parameter in block.parameters()) - block.ffn.idle_parameters()


def build_model(config: Config, device: str | torch.device = "cpu") -> GPT:
    """The model of a resolved config on `device`. It is drawn on the CPU, so every device starts alike.

    On the device `meta` it has shapes and no numbers.
    """
    with torch.device("meta" if torch.device(device).type == "meta" else "cpu"):
        model = GPT(
            config.model,
            config.parametrization,
            seed=config.seed,
            attention=config.runtime.attention,
            expert_matmul=config.runtime.expert_matmul,
        )
    return model.to(device)
