"""Optimizer groups: a partition of the parameters, with the rules' multipliers, which no schedule flattens."""

import math
from typing import Any

import pytest
import torch

from nanogpt.config import Config
from nanogpt.model import GPT, build_model
from nanogpt.optim import build_optimizer, clip_gradients, lr_factor, set_learning_rate
from parametrization import MODES, WEIGHT_DECAY_RULES


def make(mode: str = "completep", **parametrization: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"n_layer": 4, "n_head": 2, "n_embd": 32, "block_size": 8, "vocab_size": 11, "n_kv_head": 1}
            | {"tie_embeddings": False, "qk_norm": True},
            "train": {"max_iters": 10},
            "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1, "eps": 1e-8},
            "parametrization": {"mode": mode, "base_n_embd": 16, "base_n_layer": 2} | parametrization,
        }
    )


def group_of(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("rule", WEIGHT_DECAY_RULES)
@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_is_in_one_group_with_its_roles_settings(mode: str, rule: str) -> None:
    config = make(mode, weight_decay_rule=rule)
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu", steps=10)
    listed = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    groups, roles = group_of(optimizer), model.roles()
    for name, parameter in model.named_parameters():
        group, role = groups[id(parameter)], model.rules.roles[roles[name]]
        assert group["lr"] == 2e-3 * role.lr_multiplier
        assert group["eps"] == 1e-8 * role.eps_multiplier
        decay = 0.1 * role.weight_decay_multiplier / {"independent": 2e-3, "tau_epoch": 2e-2}.get(rule, 1)
        assert group["weight_decay"] == pytest.approx(decay if parameter.dim() > 1 else 0, rel=1e-12)
        assert roles[name].value in group["roles"]


@pytest.mark.parametrize("mode", MODES)
def test_independent_decay_takes_the_same_share_of_every_matrix_each_step(mode: str) -> None:
    config = make(mode, weight_decay_rule="independent")
    optimizer = build_optimizer(build_model(config), config, "cpu")
    shares = [group["lr"] * group["weight_decay"] for group in optimizer.param_groups if group["weight_decay"]]
    assert shares == pytest.approx([0.1] * len(shares), rel=1e-12)


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("mode", MODES)
def test_tau_epoch_decay_adds_up_to_the_same_over_any_run(mode: str, steps: int) -> None:
    """arXiv 2405.13698: tau = B / (lr wd D), which is 1 / (lr wd steps), is what is held; here 1 / 0.1 of the run."""
    config = make(mode, weight_decay_rule="tau_epoch")
    optimizer = build_optimizer(build_model(config), config, "cpu", steps=steps)
    sums = [group["lr"] * group["weight_decay"] * steps for group in optimizer.param_groups if group["weight_decay"]]
    assert sums == pytest.approx([0.1] * len(sums), rel=1e-12)


def test_scheduling_never_flattens_the_multipliers() -> None:
    config = make()
    optimizer = build_optimizer(build_model(config), config, "cpu")
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert len(set(peaks)) > 1, "the test needs groups that differ"
    for step in range(10):
        rate = 2e-3 * lr_factor(config.schedule, step, 10, 2e-3)
        set_learning_rate(optimizer, rate)
        assert [group["lr"] / rate for group in optimizer.param_groups] == pytest.approx(
            [peak / 2e-3 for peak in peaks], rel=1e-12
        )


def test_multipliers_survive_saving(tmp_path: Any) -> None:
    config = make()
    model = build_model(config)
    saved, fresh = (build_optimizer(model, config, "cpu") for _ in range(2))
    set_learning_rate(saved, 1e-4)
    torch.save(saved.state_dict(), tmp_path / "optimizer.pt")
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in saved.param_groups]
    assert all("lr_multiplier" in group for group in fresh.param_groups)


def test_a_step_is_adamws_formula() -> None:
    """Loshchilov & Hutter, algorithm 2, with each group's own rate, decay and eps; two steps in float64."""
    config = make()
    model = build_model(config).double()
    optimizer = build_optimizer(model, config, "cpu")
    groups = group_of(optimizer)
    generator = torch.Generator().manual_seed(0)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in start.items()}
    for step in (1, 2):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-6
            group, gradient = groups[id(parameter)], parameter.grad
            first, second = moments[name]
            first.lerp_(gradient, 1 - 0.9)
            second.lerp_(gradient.square(), 1 - 0.95)
            update = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + group["eps"])
            start[name] = start[name] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name], rtol=1e-9, atol=1e-12)


def gradients(model: GPT) -> list[torch.Tensor]:
    idx = torch.arange(8)[None] % 11
    model.zero_grad()
    model.loss(idx, idx).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_clipping_scales_all_gradients_to_the_largest_norm_allowed() -> None:
    model = build_model(make())
    before = gradients(model)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in before))
    for bound, scale in ((norm / 10, 0.1), (norm * 2, 1.0), (0.0, 1.0)):
        gradients(model)
        assert clip_gradients(model.parameters(), bound).item() == pytest.approx(norm, rel=1e-5)
        after = [parameter.grad for parameter in model.parameters()]
        for left, right in zip(before, after, strict=True):
            torch.testing.assert_close(left * scale, right, rtol=1e-4, atol=1e-8)


def test_clipping_passes_on_a_norm_that_is_not_finite() -> None:
    model = build_model(make())
    gradients(model)
    model.embedding.weight.grad[0, 0] = torch.nan
    assert torch.isnan(clip_gradients(model.parameters(), 1.0))
