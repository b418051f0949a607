"""The rules: for each role, how initial scale, learning rate, weight decay and Adam's eps follow the model's shape.

Source: CompleteP (arXiv 2505.01618), table 1, which holds muP (arXiv 2203.03466) as its column without depth. With
m_N = n_embd / base n_embd, m_L = n_layer / base n_layer, m_ff = ffn_hidden / base ffn_hidden, s = init_std, and
a = 1/2 (depth_mup) or 1 (completep):

| role                            | init std (SP: s) | lr                 | weight decay* | eps              |
|---------------------------------|------------------|--------------------|---------------|------------------|
| embedding, position             | s                | 1                  | 1             | 1                |
| hidden, attention_out           | s / sqrt(m_N)    | m_N^-1 m_L^(a-1)   | m_N           | m_N^-1 m_L^-a    |
| ffn_out                         | s / sqrt(m_ff)   | m_ff^-1 m_L^(a-1)  | m_ff          | m_ff^-1 m_L^-a   |
| hidden_bias, norm_gain, _bias   | constant         | m_L^(a-1)          | not decayed   | m_N^-1 m_L^-a    |
| final_norm_gain, _bias          | constant         | 1                  | not decayed   | 1                |
| readout (untied)                | s                | 1                  | 1             | 1                |
| router (of experts)             | s / m_N          | m_N^-1 m_L^(a-1)   | m_N           | m_L^-a           |

* under the rule `width`; see WEIGHT_DECAY_RULES. Forward: the input is multiplied by alpha_in, each residual branch by
m_L^-a, what enters the head by alpha_out / m_N, and q.k by sqrt(base head size) / head size, so that at the base
shape every mode is SP (1 / sqrt(head size)). Where a block is applied N times (weights shared, looped), m_L is the
ratio of blocks with weights of their own, and the branches are multiplied by 1 / m_N too, m_N the ratio of loops: what
one block adds in N applications is fully correlated, so that alpha = 1 is the only exponent that holds it, while its
gradients add up over the loops and leave its learning rate alone (arXiv 2606.18524). SP has every factor 1, and
GPT-2's std s / sqrt(2 n_layer) for the two output matrices, by applications, unless residual_init is `plain`. muP has
no depth factor at all, which is not the same as a = 0.

The router is not in table 1. It maps n_embd numbers to a fixed number of logits, an output weight of Tensor Programs V
(arXiv 2203.03466, table 3: init variance 1 / fan_in^2, Adam's rate 1 / fan_in). Its gradient is a sum over n_embd
aligned terms of size 1 / n_embd, so that eps has no width in it. Experts are hidden matrices; their number is fixed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from parametrization.roles import Role

ModeName = Literal["sp", "mup", "depth_mup", "completep"]
WeightDecayRule = Literal["width", "coupled", "sqrt", "independent", "tau_epoch"]
ResidualInit = Literal["gpt2", "plain"]


@dataclass(frozen=True)
class Mode:
    """Which ratios a parametrization follows; `depth_alpha` is the exponent of the residual multiplier."""

    follows_width: bool
    depth_alpha: float | None


MODES: Mapping[ModeName, Mode] = MappingProxyType(
    {
        "sp": Mode(follows_width=False, depth_alpha=None),
        "mup": Mode(follows_width=True, depth_alpha=None),
        "depth_mup": Mode(follows_width=True, depth_alpha=0.5),
        "completep": Mode(follows_width=True, depth_alpha=1.0),
    }
)

# torch's AdamW does p *= 1 - lr * wd, so the decay per step moves with the learning rate of the role:
# width        wd * m, so lr * wd is the same at every width (table 1)
# coupled      wd as given, so lr * wd falls as 1/m
# sqrt         wd * sqrt(m) (arXiv 2510.15262)
# independent  wd / peak lr, so each step at the peak decays by wd itself (Loshchilov & Hutter, arXiv 1711.05101); the
#              multiplier here undoes the role's lr multiplier, the rest is divided out by `decay_divisor`
# tau_epoch    wd / (peak lr * steps): weights average their updates over tau = 1 / wd of the run, whatever its length,
#              batch, rate or width (Wang & Aitchison, arXiv 2405.13698: tau = B / (lr * wd * D), D the run's tokens)
WEIGHT_DECAY_RULES: tuple[WeightDecayRule, ...] = ("width", "coupled", "sqrt", "independent", "tau_epoch")


@dataclass(frozen=True)
class Shape:
    """What the rules need of a model. `n_layer` counts applications of blocks on the residual path, two branches each.

    `n_layer` is an expected number where a trunk draws it; `ffn_hidden` may be fractional for a base, where it
    stands for "in proportion to the model's".
    """

    n_embd: int
    n_layer: float
    head_size: int
    ffn_hidden: float
    loops: float = 1.0  # applications per block with weights of its own


@dataclass(frozen=True)
class RoleRule:
    """One row of the table: the init std itself, and factors on learning rate, weight decay and eps.

    The ratios they were made of stand beside them, for optimizers whose rules are other powers of the same.
    """

    init_std: float
    lr_multiplier: float = 1.0
    weight_decay_multiplier: float = 1.0
    eps_multiplier: float = 1.0
    fan_in_ratio: float = 1.0  # m_N or m_ff
    depth_lr: float = 1.0  # m_L^(a-1)


@dataclass(frozen=True)
class Rules:
    """Everything a parametrization says about one model."""

    roles: Mapping[Role, RoleRule]
    input_multiplier: float
    residual_multiplier: float
    output_multiplier: float
    attention_scale: float


@dataclass(frozen=True)
class _Ratios:
    width: float
    ffn: float
    depth_lr: float  # m_L^(a-1)
    depth_eps: float  # m_L^-a
    depth_residual: float  # m_N^-1 m_L^-a, m_N the ratio of loops


def scaling_rules(
    mode: ModeName,
    shape: Shape,
    base: Shape | None = None,
    *,
    init_std: float = 0.02,
    input_multiplier: float = 1.0,
    output_multiplier: float = 1.0,
    weight_decay_rule: WeightDecayRule = "width",
    residual_init: ResidualInit = "gpt2",
) -> Rules:
    """The rules of `mode` for a model of `shape` whose settings were tuned at `base` (SP ignores the base)."""
    base = base or shape
    ratios = _ratios(MODES[mode], shape, base)
    residual_std = init_std
    if mode == "sp" and residual_init == "gpt2":
        residual_std /= math.sqrt(2 * shape.n_layer)

    def matrix(std: float, width: float) -> RoleRule:
        lr = ratios.depth_lr / width
        decay = decay_multiplier(weight_decay_rule, width, lr)
        eps = ratios.depth_eps / width
        return RoleRule(std / math.sqrt(width), lr, decay, eps, fan_in_ratio=width, depth_lr=ratios.depth_lr)

    router = matrix(init_std, ratios.width)
    router = replace(router, init_std=init_std / ratios.width, eps_multiplier=ratios.depth_eps)
    outside = RoleRule(init_std)
    vector = RoleRule(0.0, ratios.depth_lr, 0.0, ratios.depth_eps / ratios.width)
    final_vector = RoleRule(0.0, weight_decay_multiplier=0.0)
    head_size = base.head_size if MODES[mode].follows_width else shape.head_size
    return Rules(
        roles={
            Role.EMBEDDING: outside,
            Role.POSITION: outside,
            Role.HIDDEN: matrix(init_std, ratios.width),
            Role.ATTENTION_OUT: matrix(residual_std, ratios.width),
            Role.FFN_OUT: matrix(residual_std, ratios.ffn),
            Role.READOUT: outside,
            Role.ROUTER: router,
            Role.HIDDEN_BIAS: vector,
            Role.NORM_GAIN: vector,
            Role.NORM_BIAS: vector,
            Role.FINAL_NORM_GAIN: final_vector,
            Role.FINAL_NORM_BIAS: final_vector,
        },
        input_multiplier=input_multiplier,
        residual_multiplier=ratios.depth_residual,
        output_multiplier=output_multiplier / ratios.width,
        attention_scale=math.sqrt(head_size) / shape.head_size,
    )


def _ratios(mode: Mode, shape: Shape, base: Shape) -> _Ratios:
    width = shape.n_embd / base.n_embd if mode.follows_width else 1.0
    ffn = shape.ffn_hidden / base.ffn_hidden if mode.follows_width else 1.0
    if mode.depth_alpha is None:
        return _Ratios(width, ffn, depth_lr=1.0, depth_eps=1.0, depth_residual=1.0)
    loops = shape.loops / base.loops
    depth, alpha = shape.n_layer / base.n_layer / loops, mode.depth_alpha
    return _Ratios(width, ffn, depth ** (alpha - 1), depth_eps=depth**-alpha, depth_residual=depth**-alpha / loops)


def decay_multiplier(rule: WeightDecayRule, width: float, lr_multiplier: float) -> float:
    """The factor on weight decay where the learning rate carries 1 / `width`, and `lr_multiplier` with depth in it."""
    factors = {"width": width, "coupled": 1.0, "sqrt": math.sqrt(width)}
    return factors.get(rule, 1 / lr_multiplier)


def decay_divisor(rule: WeightDecayRule, learning_rate: float, steps: int) -> float:
    """What the base weight decay is divided by: where a rule names lr x wd itself, the peak rate, and a run's steps."""
    return {"independent": learning_rate, "tau_epoch": learning_rate * steps}.get(rule, 1.0)
