"""Prints the rules for plain numbers, so that a person can read what a parametrization does to a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from parametrization.muon import MUON_ROLES, MuonScale, muon_rule, update_scale
from parametrization.roles import Role
from parametrization.rules import RoleRule, Rules, WeightDecayRule

HEADINGS = ("role", "init std", "lr", "weight decay", "lr x wd", "eps")


@dataclass(frozen=True)
class RoleSettings:
    """What an optimizer is given for the tensors of one role. Both decay by lr x weight decay at each step.

    `eps` is AdamW's; None says that Muon trains these tensors.
    """

    learning_rate: float
    weight_decay: float
    eps: float | None


@dataclass(frozen=True)
class MuonHalf:
    """That Muon trains the matrices of the backbone, how, and which shapes (fan_out, fan_in) they have, by name."""

    scale: MuonScale
    weight_decay_rule: WeightDecayRule
    shapes: Mapping[str, tuple[float, float]]


def multipliers(rules: Rules, muon: MuonHalf | None = None) -> dict[Role, RoleSettings]:
    """The settings where each base learning rate, weight decay and eps is 1: the factors of the table."""
    return {role: _multipliers(role, rules.roles[role], muon) for role in Role}


def _multipliers(role: Role, rule: RoleRule, muon: MuonHalf | None) -> RoleSettings:
    if muon is None or role not in MUON_ROLES:
        return RoleSettings(rule.lr_multiplier, rule.weight_decay_multiplier, rule.eps_multiplier)
    row = muon_rule(rule, muon.scale, muon.weight_decay_rule)
    return RoleSettings(row.lr_multiplier, row.weight_decay_multiplier, eps=None)


def format_rules(
    rules: Rules, settings: Mapping[Role, RoleSettings] | None = None, muon: MuonHalf | None = None
) -> str:
    """One line per role of `settings` (default: all roles, with their multipliers), then the forward multipliers.

    With `muon` a last line gives the factor on the update of each of its matrices.
    """
    if settings is None:
        settings = multipliers(rules, muon)
    rows = [HEADINGS, *(_row(role, rules.roles[role], values) for role, values in settings.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    forward = (
        f"forward: input x {rules.input_multiplier:.6g}, residual branch x {rules.residual_multiplier:.6g}, "
        f"head input x {rules.output_multiplier:.6g}, attention scale {rules.attention_scale:.6g}"
    )
    return "\n".join([*lines, forward, *([] if muon is None else [_format_updates(muon)])])


def format_modes(rules_by_mode: Mapping[str, Rules], muon: MuonHalf | None = None) -> str:
    """The tables of several modes under one another."""
    return "\n\n".join(f"{mode}\n{format_rules(rules, muon=muon)}" for mode, rules in rules_by_mode.items())


def _format_updates(muon: MuonHalf) -> str:
    parts = [
        f"{name} ({fan_out:.6g} x {fan_in:.6g}) x {update_scale(muon.scale, fan_out, fan_in):.6g}"
        for name, (fan_out, fan_in) in muon.shapes.items()
    ]
    return f"Muon's update, scale {muon.scale}: {'; '.join(parts)}"


def _row(role: Role, rule: RoleRule, settings: RoleSettings) -> tuple[str, ...]:
    std = f"{rule.init_std:.6g}" if role.is_matrix else f"= {role.constant:.0f}"
    decay, product = "none", "none"
    if role.is_matrix:
        decay = f"{settings.weight_decay:.6g}"
        product = f"{settings.learning_rate * settings.weight_decay:.6g}"
    eps = "(Muon)" if settings.eps is None else f"{settings.eps:.6g}"
    return role.value, std, f"{settings.learning_rate:.6g}", decay, product, eps
