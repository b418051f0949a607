"""From roles and multipliers to optimizer groups: every parameter in exactly one, asserted."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from nanogpt.config import Config
from nanogpt.model.gpt import GPT
from parametrization import Role, Rules

FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(model: GPT, config: Config, device: str | torch.device) -> torch.optim.AdamW:
    """AdamW with one group per distinct (learning rate, weight decay, eps).

    Each group keeps its `lr_multiplier`: peak learning rate = optimizer.learning_rate * lr_multiplier. Only matrices
    are decayed, embeddings among them. `roles` lists what a group holds, for people who read a checkpoint.
    """
    settings = config.optimizer
    groups: dict[tuple[float, float, float], dict] = {}
    roles = model.roles()
    for name, parameter in model.named_parameters():
        role = roles[name]
        multiplier, decay, eps = _role_settings(role, model.rules, config)
        group = groups.setdefault(
            (multiplier, decay, eps),
            {
                "params": [],
                "roles": [],
                "lr_multiplier": multiplier,
                "lr": settings.learning_rate * multiplier,
                "weight_decay": decay,
                "eps": eps,
            },
        )
        group["params"].append(parameter)
        if role.value not in group["roles"]:
            group["roles"].append(role.value)
    _assert_partition(model, groups.values())
    return torch.optim.AdamW(
        list(groups.values()),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        # One kernel for the whole step: 2.2 times faster than foreach on a CPU. None leaves the choice to torch.
        fused=True if torch.device(device).type in FUSED_DEVICES else None,
    )


def _role_settings(role: Role, rules: Rules, config: Config) -> tuple[float, float, float]:
    """(lr multiplier, weight decay, eps) of one role."""
    rule, settings = rules.roles[role], config.optimizer
    decay = settings.weight_decay * rule.weight_decay_multiplier if role.is_matrix else 0.0
    if config.parametrization.weight_decay_rule == "independent":
        # torch decays by lr * wd; independent decay is wd itself, so the peak rate is divided out.
        decay /= settings.learning_rate
    return rule.lr_multiplier, decay, settings.eps * rule.eps_multiplier


def _assert_partition(model: GPT, groups: Iterable[dict]) -> None:
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()), "groups must be a partition"


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the base learning rate; each group gets it times its own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_multiplier"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `max_norm` (0: leave them); returns the norm before.

    torch takes its foreach kernels, one call for all tensors, where the device has them.

    Stays on the device: reading the result is the caller's choice, as it waits for the device.
    """
    parameters = list(parameters)
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
