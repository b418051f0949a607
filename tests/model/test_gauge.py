"""Gauge symmetry: multiplier x c, std / c, lr / c, eps x c, weight decay x c is the same training to the last digits.

y = A W x does not change under it, and AdamW divides its gradients' scale out (Tensor Programs V, arXiv 2203.03466,
lemma J.1). It ties every factor of a parametrization to the others: one that is not applied, or applied twice, shows.
"""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nanogpt.model.gpt as gpt
from nanogpt.config import Config
from nanogpt.model import GPT, build_model
from nanogpt.optim import build_optimizer
from parametrization import Role, RoleRule, Rules

C = 3.0  # no power of two, so that nothing cancels exactly
STEPS = 20
CONFIG = Config.model_validate(
    {
        "model": {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 8, "vocab_size": 11, "tie_embeddings": False},
        "train": {"max_iters": STEPS},
        # A large eps and decay, so that a wrong factor on either would show.
        "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.5, "eps": 1e-4},
        "parametrization": {"mode": "completep", "base_n_embd": 16, "base_n_layer": 2},
    }
)
# The multiplier that acts on a tensor's product, and the roles of all tensors it acts on.
GAUGES: dict[str, tuple[Role, ...]] = {
    "output_multiplier": (Role.READOUT,),
    "input_multiplier": (Role.EMBEDDING, Role.POSITION),
    "residual_multiplier": (Role.ATTENTION_OUT, Role.FFN_OUT),
}


def turned(rules: Rules, multiplier: str, leave_out: str | None = None) -> Rules:
    """The same parametrization in another gauge; `leave_out` names a factor that is forgotten."""

    def turn(rule: RoleRule) -> RoleRule:
        factors = {
            "init_std": 1 / C,
            "lr_multiplier": 1 / C,
            "eps_multiplier": C,
            "weight_decay_multiplier": C,
        }
        factors.pop(leave_out or "", None)
        return dataclasses.replace(rule, **{name: getattr(rule, name) * by for name, by in factors.items()})

    changed = {role: turn(rules.roles[role]) for role in GAUGES[multiplier]}
    new = {multiplier: getattr(rules, multiplier) * (1 if leave_out == "multiplier" else C)}
    return dataclasses.replace(rules, roles={**rules.roles, **changed}, **new)


def build(monkeypatch: pytest.MonkeyPatch, rules: Rules, config: Config) -> GPT:
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "model_rules", lambda model, parametrization: rules)
        return build_model(config).double()


def train(model: GPT, config: Config) -> list[float]:
    optimizer = build_optimizer(model, config, "cpu")
    losses = []
    for step in range(STEPS):
        idx = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(idx).flatten(0, 1), idx.roll(-1, 1).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def difference(monkeypatch: pytest.MonkeyPatch, multiplier: str, leave_out: str | None) -> float:
    """The largest |difference of losses| between the config's own gauge and another one."""
    # The biases of a branch would need the turn too, and share their role with those of the other matrices.
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"bias": False})})
    plain = build_model(config).double()
    rules = turned(plain.rules, multiplier, leave_out)
    other = build(monkeypatch, rules, config)
    roles, start = plain.roles(), dict(plain.named_parameters())
    for name, parameter in other.named_parameters():
        ratio = (
            rules.roles[roles[name]].init_std / plain.rules.roles[roles[name]].init_std if parameter.dim() > 1 else 1
        )
        torch.testing.assert_close(parameter, start[name] * ratio, rtol=1e-5, atol=1e-7)
        parameter.data = start[name].detach() * ratio  # the draw is float32; take away its rounding
    pairs = zip(train(plain, config), train(other, config), strict=True)
    return max(abs(left - right) for left, right in pairs)


@pytest.mark.parametrize("multiplier", GAUGES)
def test_training_is_the_same_in_every_gauge(monkeypatch: pytest.MonkeyPatch, multiplier: str) -> None:
    assert difference(monkeypatch, multiplier, leave_out=None) < 1e-9


@pytest.mark.parametrize(
    "factor", ["multiplier", "init_std", "lr_multiplier", "eps_multiplier", "weight_decay_multiplier"]
)
@pytest.mark.parametrize("multiplier", GAUGES)
def test_a_forgotten_factor_shows(monkeypatch: pytest.MonkeyPatch, multiplier: str, factor: str) -> None:
    assert difference(monkeypatch, multiplier, leave_out=factor) > 1e-6


def test_the_steps_change_the_loss() -> None:
    losses: Any = train(build_model(CONFIG).double(), CONFIG)
    assert losses[0] - losses[-1] > 0.005, "equal losses of models that do not learn would prove nothing"
