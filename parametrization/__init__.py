"""The scaling rules of SP, muP, depth-muP and CompleteP, as plain numbers: no torch, no model, no files."""

from parametrization.roles import Role
from parametrization.rules import MODES, WEIGHT_DECAY_RULES, Mode, RoleRule, Rules, Shape, scaling_rules

__all__ = ["MODES", "WEIGHT_DECAY_RULES", "Mode", "Role", "RoleRule", "Rules", "Shape", "scaling_rules"]
