"""Every optimizer keeps these promises; parametrized over the registry, so that a new one is included.

Each parameter in one group, rates in proportion under a schedule, determinism, saved state, float64, a falling loss.
"""

import copy
from typing import Any, get_args

import pytest
import torch

from nanogpt.config import Config
from nanogpt.config.training import Optimizer
from nanogpt.model import GPT, build_model
from nanogpt.optim import build_optimizer, set_learning_rate
from nanogpt.optim.build import OPTIMIZERS
from parametrization import MODES

any_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
any_mode = pytest.mark.parametrize("mode", MODES)


def make(kind: str, mode: str = "sp") -> Config:
    return Config.model_validate(
        {
            "model": {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "block_size": 12, "vocab_size": 37},
            "train": {"max_iters": 10},
            "optimizer": {"kind": kind, "learning_rate": 1e-2},
            "parametrization": {"mode": mode, "base_n_embd": 16, "base_n_layer": 1},
        }
    )


def advance(model: GPT, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        idx = torch.randint(37, (4, 12), generator=torch.Generator().manual_seed(step % 2))
        optimizer.zero_grad()
        loss = model.loss(idx, idx.roll(-1, dims=1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def built(config: Config) -> tuple[GPT, torch.optim.Optimizer]:
    model = build_model(config)
    return model, build_optimizer(model, config, "cpu")


def test_the_registry_has_every_kind_of_the_schema() -> None:
    arms = get_args(get_args(Optimizer)[0])
    assert {arm.model_fields["kind"].default for arm in arms} == set(OPTIMIZERS)


@any_mode
@any_optimizer
def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(kind: str, mode: str) -> None:
    model, optimizer = built(make(kind, mode))
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    assert groups.keys() == {id(parameter) for parameter in model.parameters()}
    for name, role in model.roles().items():
        group = groups[id(model.get_parameter(name))]
        assert role.value in group["roles"]
        assert (group["weight_decay"] > 0) == role.is_matrix


@any_mode
@any_optimizer
def test_groups_keep_their_proportions_at_every_rate(kind: str, mode: str) -> None:
    _, optimizer = built(make(kind, mode))
    peaks = [group["lr"] for group in optimizer.param_groups]
    for share in (1.0, 0.3, 1e-3):
        set_learning_rate(optimizer, 1e-2 * share)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([share * peak for peak in peaks], rel=1e-12)


@any_optimizer
def test_saved_state_goes_on_bit_exactly(kind: str, tmp_path: Any) -> None:
    config = make(kind, "completep")
    model, optimizer = built(config)
    advance(model, optimizer, range(3))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    whole = advance(model, optimizer, range(3, 6))

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, restored = built(config)
    again.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    assert advance(again, restored, range(3, 6)) == whole
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), again.parameters(), strict=True))


@any_optimizer
def test_a_rate_of_zero_moves_nothing_even_after_loading(kind: str) -> None:
    config = make(kind)
    model, optimizer = built(config)
    advance(model, optimizer, range(2))
    _, fresh = model, build_optimizer(model, config, "cpu")
    fresh.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(model.state_dict())
    set_learning_rate(fresh, 0.0)
    advance(model, fresh, range(2, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@any_optimizer
def test_training_is_deterministic_and_lowers_the_loss(kind: str) -> None:
    runs = [advance(*built(make(kind)), range(16)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0] - 0.3


@any_optimizer
def test_the_configs_text_leads_to_the_optimizer(kind: str) -> None:
    config = Config.model_validate({"optimizer": kind, "train": {"max_iters": 1}})
    assert config.optimizer.kind == kind
    assert Config.model_validate(config.model_dump(mode="json")) == config
