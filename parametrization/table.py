"""Prints the rules for plain numbers, so that a person can read what a parametrization does to a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from parametrization.roles import Role
from parametrization.rules import RoleRule, Rules

HEADINGS = ("role", "init std", "lr", "weight decay", "lr x wd", "eps")


@dataclass(frozen=True)
class RoleSettings:
    """What an optimizer is given for the tensors of one role. Both decay by lr x weight decay at each step.

    `eps` is AdamW's; None says that Muon trains these tensors.
    """

    learning_rate: float
    weight_decay: float
    eps: float | None


def multipliers(rule: RoleRule) -> RoleSettings:
    """The settings where the base learning rate, weight decay and eps are all 1: the factors of the table."""
    return RoleSettings(rule.lr_multiplier, rule.weight_decay_multiplier, rule.eps_multiplier)


def format_rules(rules: Rules, settings: Mapping[Role, RoleSettings] | None = None) -> str:
    """One line per role of `settings` (default: all roles, with their multipliers), then the forward multipliers."""
    if settings is None:
        settings = {role: multipliers(rules.roles[role]) for role in Role}
    rows = [HEADINGS, *(_row(role, rules.roles[role], values) for role, values in settings.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    forward = (
        f"forward: input x {rules.input_multiplier:.6g}, residual branch x {rules.residual_multiplier:.6g}, "
        f"head input x {rules.output_multiplier:.6g}, attention scale {rules.attention_scale:.6g}"
    )
    return "\n".join([*lines, forward])


def format_modes(rules_by_mode: Mapping[str, Rules]) -> str:
    """The tables of several modes under one another."""
    return "\n\n".join(f"{mode}\n{format_rules(rules)}" for mode, rules in rules_by_mode.items())


def _row(role: Role, rule: RoleRule, settings: RoleSettings) -> tuple[str, ...]:
    std = f"{rule.init_std:.6g}" if role.is_matrix else f"= {role.constant:.0f}"
    decay, product = "none", "none"
    if role.is_matrix:
        decay = f"{settings.weight_decay:.6g}"
        product = f"{settings.learning_rate * settings.weight_decay:.6g}"
    eps = "(Muon)" if settings.eps is None else f"{settings.eps:.6g}"
    return role.value, std, f"{settings.learning_rate:.6g}", decay, product, eps
