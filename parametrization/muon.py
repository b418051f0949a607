"""Muon's rows of the table: which roles it trains, how long its update is, and how that follows the model's shape.

Muon's update is an orthogonal matrix, every singular value about 1, times a factor of the matrix's own shape
(fan_out x fan_in), times the learning rate. With m the ratio of the fan-in to the base model's:

| scale           | factor on the update           | lr at ratio m | source                                       |
|-----------------|--------------------------------|---------------|----------------------------------------------|
| original        | sqrt(max(1, fan_out / fan_in)) | 1             | K. Jordan, kellerjordan.github.io/posts/muon |
| match_rms_adamw | 0.2 sqrt(max(fan_out, fan_in)) | m^-1/2        | Moonlight, arXiv 2502.16982                  |
| spectral        | sqrt(fan_out / fan_in)         | 1             | arXiv 2310.17813, condition 1                |

A hidden matrix should change by a spectral norm of about sqrt(fan_out / fan_in) at every width (arXiv 2310.17813).
`spectral` is just that, `original` grows alike when all widths grow together, and `match_rms_adamw` grows by sqrt(m)
too much, which its learning rate takes back: m^-1/2, not AdamW's 1 / m. Depth is as for AdamW: m_L^(a-1). Where the
feed-forward width is not in proportion to n_embd, only `spectral` is exact.
"""

import math
from dataclasses import dataclass
from typing import Literal

from parametrization.roles import Role
from parametrization.rules import RoleRule, WeightDecayRule, decay_multiplier

MuonScale = Literal["original", "match_rms_adamw", "spectral"]

# The matrices of the backbone. Named one by one, so that a role added later (a router) is not Muon's by accident.
MUON_ROLES = frozenset({Role.HIDDEN, Role.ATTENTION_OUT, Role.FFN_OUT})


@dataclass(frozen=True)
class MuonRule:
    """Factors on Muon's learning rate and weight decay for one role."""

    lr_multiplier: float
    weight_decay_multiplier: float


def muon_rule(rule: RoleRule, scale: MuonScale, weight_decay_rule: WeightDecayRule) -> MuonRule:
    """Muon's row for a role, from the same ratios that AdamW's row was made of.

    Decay is p *= 1 - lr * wd with the learning rate before the factor on the update. The weight-decay rules mean what
    they mean for AdamW, and as the learning rate of `original` and `spectral` has no width in it, there is none in
    their decay either: under `width`, lr * wd is the same at every width.
    """
    width = math.sqrt(rule.fan_in_ratio) if scale == "match_rms_adamw" else 1.0
    lr = rule.depth_lr / width
    return MuonRule(lr, decay_multiplier(weight_decay_rule, width, lr))


def update_scale(scale: MuonScale, fan_out: float, fan_in: float) -> float:
    """The factor on an orthogonalised update of a fan_out x fan_in matrix."""
    if scale == "original":
        return math.sqrt(max(1.0, fan_out / fan_in))
    if scale == "match_rms_adamw":
        return 0.2 * math.sqrt(max(fan_out, fan_in))
    return math.sqrt(fan_out / fan_in)


def matrix_shapes(n_embd: int, ffn_hidden: float, kv_width: int | None = None) -> dict[str, tuple[float, float]]:
    """(fan_out, fan_in) of each matrix that Muon trains in a block, by what it is; `kv_width`: of K and of V alone.

    Under grouped queries K and V are smaller than Q. Experts are each a feed-forward layer of this shape.
    """
    shapes = {"q, attention_out": (n_embd, n_embd), "k, v": (kv_width or n_embd, n_embd)}
    if shapes["k, v"] == shapes["q, attention_out"]:
        shapes = {"q, k, v, attention_out": (n_embd, n_embd)}
    return {**shapes, "ffn in": (ffn_hidden, n_embd), "ffn_out": (n_embd, ffn_hidden)}
