"""Prints the rules for plain numbers, so that a person can read what a parametrization does to a model."""

from collections.abc import Mapping

from parametrization.roles import Role
from parametrization.rules import Rules

HEADINGS = ("role", "init std", "lr", "weight decay", "eps")


def format_rules(rules: Rules) -> str:
    """One line per role, then the multipliers of the forward pass."""
    rows = [HEADINGS, *(_row(role, rules) for role in Role)]
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


def _row(role: Role, rules: Rules) -> tuple[str, ...]:
    rule = rules.roles[role]
    std = f"{rule.init_std:.6g}" if role.is_matrix else f"= {role.constant:.0f}"
    decay = f"{rule.weight_decay_multiplier:.6g}" if role.is_matrix else "none"
    return role.value, std, f"{rule.lr_multiplier:.6g}", decay, f"{rule.eps_multiplier:.6g}"
