"""The scaling rules of SP, muP, depth-muP and CompleteP, as plain numbers: no torch, no model, no files."""

from parametrization.muon import MUON_ROLES, MuonRule, MuonScale, matrix_shapes, muon_rule, update_scale
from parametrization.roles import Role
from parametrization.rules import (
    MODES,
    WEIGHT_DECAY_RULES,
    Mode,
    RoleRule,
    Rules,
    Shape,
    WeightDecayRule,
    decay_divisor,
    scaling_rules,
)

__all__ = [
    "MODES",
    "MUON_ROLES",
    "WEIGHT_DECAY_RULES",
    "Mode",
    "MuonRule",
    "MuonScale",
    "Role",
    "RoleRule",
    "Rules",
    "Shape",
    "WeightDecayRule",
    "decay_divisor",
    "matrix_shapes",
    "muon_rule",
    "scaling_rules",
    "update_scale",
]
