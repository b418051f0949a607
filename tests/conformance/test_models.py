"""Every model that can be configured keeps these promises; parametrized over the registries, so new arms are included.

Shape, causality by gradient, FLOPs against torch's counter, initialisation by role, save and load, determinism.
The slow part, the other way of attention for each model, takes about 15 s.
"""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Config
from nanogpt.config.model import kind_of
from nanogpt.config.trunks import COUNT_THEIR_OWN
from nanogpt.model import build_model
from nanogpt.model.ffn import FFNS
from nanogpt.model.gpt import PARAMETER_GROUPS
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer
from parametrization import MODES, Role
from tests.conformance import trunk_models
from tests.conformance.trunk_models import TOKENS, VOCAB, WIDTH, tokens
from tests.covers import cover


def make(model: dict[str, Any] | None = None, **sections: Any) -> Config:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": WIDTH, "block_size": TOKENS, "vocab_size": VOCAB} | (model or {})
    if kind_of(shape.get("trunk")) in COUNT_THEIR_OWN:
        del shape["n_layer"]
    return Config.model_validate({"model": shape, "train": {"max_iters": 10}, **sections})


MODELS = {f"{trunk}-{ffn}": {"trunk": trunk, "ffn": ffn} for trunk, ffn in itertools.product(TRUNKS, FFNS)} | {
    "rmsnorm": {"norm": "rmsnorm"},
    "rope": {"position": "rope"},
    "no positions": {"position": "none"},
    "no biases": {"bias": False},
    "untied": {"tie_embeddings": False},
    "grouped queries": {"n_kv_head": 2},
    "one key head": {"n_kv_head": 1},
    "qk norm": {"qk_norm": True},
    "soft cap": {"logit_softcap": 15.0},
    "odd ffn width": {"ffn": {"kind": "swiglu", "hidden": 41}},
    "llama style": {
        "norm": "rmsnorm",
        "position": "rope",
        "ffn": "swiglu",
        "bias": False,
        "tie_embeddings": False,
        "n_kv_head": 2,
        "qk_norm": True,
        "logit_softcap": 30.0,
    },
}
any_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
# Each model with one of the two, and with the other where time is no matter.
any_model_and_attention = pytest.mark.parametrize(("model", "attention"), cover(MODELS, ["explicit", "sdpa"]))


perturbed = functools.partial(trunk_models.perturbed, alpha=0.2)


@any_model
def test_logits_have_their_shape_at_every_length(model: dict[str, Any]) -> None:
    gpt = build_model(make(model))
    for length in (1, 5, TOKENS):
        assert gpt(tokens(3, length)).shape == (3, length, VOCAB)


@any_model_and_attention
def test_the_past_has_exactly_zero_gradient_from_the_future(model: dict[str, Any], attention: str) -> None:
    gpt = perturbed(make(model, runtime={"attention": attention}))
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    gpt.embedding.register_forward_hook(keep)
    logits = gpt(tokens(1))
    for position in (0, 3, TOKENS - 2):
        (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), embedded[0], retain_graph=True)
        reached = gradient[0].abs().sum(dim=-1)
        assert torch.count_nonzero(reached[position + 1 :]) == 0, "the future reaches the past"
        assert torch.count_nonzero(reached[: position + 1]) == position + 1, "the past does not reach the present"


@any_model_and_attention
def test_flops_are_exactly_those_torch_counts(model: dict[str, Any], attention: str) -> None:
    gpt = build_model(make(model, runtime={"attention": attention}), "meta")
    for batch, length in ((1, TOKENS), (3, 7)):
        idx = torch.zeros(batch, length, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter:
            gpt.loss(idx, idx).backward()
        per_token = gpt.flops_of(gpt.trunk.usage_of(gpt.trunk.schedule()), length)
        assert counter.get_total_flops() == batch * length * sum(per_token.values())


@any_model
def test_counts_are_a_partition_and_agree_with_the_tensors(model: dict[str, Any]) -> None:
    gpt = build_model(make(model))
    counts = gpt.parameter_counts()
    groups = counts.as_dict()
    assert (
        sum(groups[name] for name in PARAMETER_GROUPS)
        == counts.total
        == sum(parameter.numel() for parameter in gpt.parameters())
    )
    backbone = [*gpt.trunk.parameters(), *gpt.final_norm.parameters()]
    assert counts.non_embedding == sum(parameter.numel() for parameter in backbone)
    assert gpt.roles().keys() == dict(gpt.named_parameters()).keys()


@pytest.mark.parametrize("mode", MODES)
@any_model
def test_initial_tensors_follow_their_role(model: dict[str, Any], mode: str) -> None:
    base = {"base_n_embd": 16, "base_n_layer": 1}
    gpt = build_model(make(model | {"n_embd": 128}, parametrization={"mode": mode, **base}))
    roles = gpt.roles()
    for name, parameter in gpt.named_parameters():
        role = roles[name]
        if role.is_matrix:
            std = gpt.rules.roles[role].init_std
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * std / parameter.numel() ** 0.5, name
        else:
            assert torch.all(parameter == role.constant), name


@any_model
def test_a_model_is_a_pure_function_of_config_and_seed(model: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = build_model(make(model, seed=7))
    torch.manual_seed(2)
    again, other = build_model(make(model, seed=7)), build_model(make(model, seed=8))
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@any_model
def test_saved_weights_give_the_same_logits(model: dict[str, Any], tmp_path: Any) -> None:
    trained, fresh = perturbed(make(model)), build_model(make(model, seed=5))
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    assert not torch.equal(trained(tokens()), fresh(tokens()))
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(trained(tokens()), fresh(tokens()))


@any_model
def test_explicit_and_fused_attention_agree(model: dict[str, Any]) -> None:
    explicit, fused = (perturbed(make(model, runtime={"attention": path})) for path in ("explicit", "sdpa"))
    losses = [gpt.loss(tokens(), tokens(seed=1)) for gpt in (explicit, fused)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    for (name, left), right in zip(explicit.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(
            left.grad, right.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@any_model
def test_training_reaches_every_parameter_and_lowers_the_loss(model: dict[str, Any]) -> None:
    config = make(model, optimizer={"learning_rate": 1e-2})
    gpt = build_model(config)
    optimizer = build_optimizer(gpt, config, "cpu")
    before = {name: parameter.detach().clone() for name, parameter in gpt.named_parameters()}
    idx = tokens(4)
    losses = []
    for _ in range(12):
        loss = gpt.loss(idx, idx.roll(-1, dims=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    moved = {name: not torch.equal(before[name], parameter) for name, parameter in gpt.named_parameters()}
    assert all(moved.values()), f"not trained: {[name for name, yes in moved.items() if not yes]}"


@any_model
def test_bf16_autocast_runs_without_warnings_and_stays_close(model: dict[str, Any]) -> None:
    gpt = build_model(make(model))
    exact = gpt.loss(tokens(), tokens(seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = gpt.loss(tokens(), tokens(seed=1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_all_roles_appear_in_a_full_model(mode: str) -> None:
    base = {"mode": mode, "base_n_embd": 16, "base_n_layer": 1}
    gpt = build_model(make({"tie_embeddings": False, "ffn": "topk_moe"}, parametrization=base), "meta")
    assert set(gpt.roles().values()) == set(Role)
