"""What the parametrization makes of one config: the rule table with the numbers that training will use."""

from nanogpt.config import Config
from nanogpt.config.training import Muon
from nanogpt.describe import Description
from nanogpt.model import build_model
from nanogpt.optim import build_optimizer
from parametrization import Role, matrix_shapes
from parametrization.table import MuonHalf, RoleSettings, format_rules


def role_settings(config: Config, steps: int | None = None) -> dict[Role, RoleSettings]:
    """The settings of every role that the model of a resolved config has, read from the optimizer that is built for it.

    Nothing is computed a second time, so what is printed is what trains. `steps` is the run's horizon.
    """
    model = build_model(config, "meta")
    optimizer = build_optimizer(model, config, "meta", steps=steps)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    roles = model.roles()
    found: dict[Role, RoleSettings] = {}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        settings = RoleSettings(group["lr"], group["weight_decay"], group.get("eps"))
        known = found.setdefault(roles[name], settings)
        assert known == settings, f"tensors of the role {roles[name]} differ in their settings"
    return {role: found[role] for role in Role if role in found}


def format_config_rules(description: Description) -> str:
    """The table for people: the mode and its shapes, then the numbers of each role, then the forward multipliers."""
    config = description.config
    rules, parametrization, model = build_model(config, "meta").rules, config.parametrization, config.model
    base = {"base_n_embd": parametrization.base_n_embd, "base_n_layer": parametrization.base_n_layer}
    given = ", ".join(f"{name}={value}" for name, value in base.items() if value is not None) or "no base shape"
    applied = f"{description.config.model.trunk.kind}, depth {description.applications:.6g}"
    depth = f"n_layer={model.n_layer}" if model.n_layer is not None else applied
    heading = (
        f"{parametrization.mode}: n_embd={model.n_embd}, {depth}, head size {model.head_size}, "
        f"ffn width {model.ffn_hidden}; {given}; weight_decay_rule={parametrization.weight_decay_rule}"
    )
    return f"{heading}\n{format_rules(rules, role_settings(config, description.steps), muon_half(config))}"


def muon_half(config: Config) -> MuonHalf | None:
    """What Muon trains in the model of a resolved config; None where it trains nothing."""
    optimizer, model = config.optimizer, config.model
    if not isinstance(optimizer, Muon):
        return None
    shapes = matrix_shapes(model.n_embd, model.ffn_hidden, model.kv_heads * model.head_size)
    if getattr(model.trunk, "inject", None) == "concat":
        shapes["adapter"] = (model.n_embd, 2 * model.n_embd)
    return MuonHalf(optimizer.scale, config.parametrization.weight_decay_rule, shapes)
