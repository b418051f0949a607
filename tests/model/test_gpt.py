"""The GPT as a whole: GPT-2's sizes, exact FLOPs, tied heads, dropout, accumulation, compilation, multipliers.

Slow part: about 60 s.
"""

import itertools
import math
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Config, UserError
from nanogpt.model import build_model
from nanogpt.optim import build_optimizer
from parametrization import MODES, Role

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}


def config(model: dict[str, Any] | None = None, **sections: Any) -> Config:
    return Config.model_validate({"model": TINY | (model or {}), "train": {"max_iters": 4}, **sections})


def tokens(batch: int = 4, length: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "count"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_gpt2_has_the_published_number_of_parameters(n_layer: int, n_head: int, n_embd: int, count: int) -> None:
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": 1024, "vocab_size": 50257}
    counts = build_model(config(shape), "meta").parameter_counts()
    assert counts.total == counts.active == count
    assert counts.non_embedding == count - 50257 * n_embd - 1024 * n_embd


def test_gpt2_flops_are_those_of_the_closed_form() -> None:
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304}
    model = build_model(config(shape), "meta")
    assert model.flops_per_token() == 6 * (12 * 12 * 768**2 + 50304 * 768) + 12 * 12 * 768 * 1024 == 854_654_976


OPTIONS: dict[str, list[Any]] = {
    "norm": ["layernorm", "rmsnorm"],
    "position": ["learned", "rope", "none"],
    "ffn": ["gelu", "swiglu"],
    "bias": [True, False],
    "tie_embeddings": [True, False],
    "n_kv_head": [None, 1],
    "qk_norm": [False, True],
}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
def test_flops_are_exact_for_every_combination_of_options(attention: str) -> None:
    idx = torch.zeros(1, 8, dtype=torch.long, device="meta")
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True)) | {"n_layer": 1}
        model = build_model(config(options, runtime={"attention": attention}), "meta")
        with FlopCounterMode(display=False) as counter:
            model.loss(idx, idx).backward()
        assert counter.get_total_flops() == 8 * model.flops_per_token(), options


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_the_eight_combinations_train(norm: str, position: str, ffn: str) -> None:
    settings = config({"norm": norm, "position": position, "ffn": ffn}, optimizer={"learning_rate": 1e-2})
    model = build_model(settings)
    optimizer = build_optimizer(model, settings, "cpu")
    idx = tokens()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < math.log(11) - 0.8


def test_an_unresolved_vocabulary_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"vocab_size.*auto"):
        build_model(config({"vocab_size": "auto"}))


def test_a_tied_head_is_one_tensor_with_the_gradient_of_both_uses() -> None:
    tied, untied = build_model(config()), build_model(config({"tie_embeddings": False}))
    assert untied.head is not None
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embedding.weight.detach()})
    idx = tokens()
    for model in (tied, untied):
        model.loss(idx, idx.roll(-1, 1)).backward()
    both = untied.embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.embedding.weight.grad, both, rtol=1e-5, atol=1e-8)
    difference = untied.parameter_counts().total - tied.parameter_counts().total
    assert difference == untied.parameter_counts().readout == 11 * 16
    assert untied.parameter_counts().non_embedding == tied.parameter_counts().non_embedding


def test_losses_score_only_the_targets_that_are_not_masked() -> None:
    model = build_model(config())
    idx, targets = tokens(), tokens(seed=1)
    targets[0, :5] = targets[2, 7] = -1
    log_p = model(idx).log_softmax(dim=-1)
    each = [[-log_p[b, t, targets[b, t]].item() for t in range(8) if targets[b, t] >= 0] for b in range(4)]
    assert model.scores(idx, targets).loss_sum_B.tolist() == pytest.approx([sum(row) for row in each], rel=1e-5)
    assert model.loss(idx, targets).item() == pytest.approx(sum(map(sum, each)) / sum(map(len, each)), rel=1e-5)


def test_the_soft_cap_bounds_the_logits_as_its_formula_says() -> None:
    capped, plain = build_model(config({"logit_softcap": 0.05})), build_model(config())
    expected = 0.05 * torch.tanh(plain(tokens()) / 0.05)
    torch.testing.assert_close(capped(tokens()), expected)
    assert capped(tokens()).abs().max() < 0.05 < plain(tokens()).abs().max()


def test_dropout_is_off_at_zero_and_at_evaluation_and_follows_the_seed() -> None:
    none, some = build_model(config()), build_model(config({"dropout": 0.3}))
    assert torch.equal(none(tokens()), none.eval()(tokens()))
    assert torch.equal(some.eval()(tokens()), none(tokens()))
    some.train()

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return some(tokens())

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), none(tokens()))


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
def test_dropout_reaches_the_attention_probabilities(attention: str) -> None:
    model = build_model(config({"dropout": 0.5}, runtime={"attention": attention}))
    layer = model.trunk.blocks[0].attention
    x, context = torch.randn(1, 8, 16), model._context(tokens())
    assert not torch.equal(layer(x, context, 0), layer(x, context, 0))
    layer.eval()
    assert torch.equal(layer(x, context, 0), layer(x, context, 0))


def test_four_micro_batches_have_the_gradient_of_one_batch() -> None:
    whole, parts = build_model(config()), build_model(config())
    idx, targets = tokens(8), tokens(8, seed=1)
    whole.loss(idx, targets).backward()
    for x, y in zip(idx.split(2), targets.split(2), strict=True):
        (parts.loss(x, y) / 4).backward()
    for left, right in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", [{}, {"norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "n_kv_head": 1}])
def test_a_compiled_model_equals_the_eager_one(model: dict[str, Any]) -> None:
    eager, compiled = build_model(config(model)), build_model(config(model))
    idx, targets = tokens(), tokens(seed=1)
    torch.compiler.reset()
    left, right = eager.loss(idx, targets), torch.compile(compiled.loss)(idx, targets)
    assert left.item() == pytest.approx(right.item(), abs=1e-4)
    left.backward()
    right.backward()
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def trained_losses(mode: str, width: int, depth: int) -> list[float]:
    rules = {"mode": mode, "base_n_embd": 16, "base_n_layer": 2, "base_head_size": 8, "residual_init": "plain"}
    shape = {"n_embd": width, "n_head": width // 8, "n_layer": depth}
    settings = config(shape, parametrization=rules, optimizer={"learning_rate": 1e-2})
    model = build_model(settings)
    optimizer = build_optimizer(model, settings, "cpu")
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model.loss(tokens(seed=step), tokens(seed=step).roll(-1, 1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_parametrizations_are_bitwise_one_at_the_base_and_all_different_away_from_it() -> None:
    at_base = [trained_losses(mode, 16, 2) for mode in MODES]
    assert all(losses == at_base[0] for losses in at_base)
    away = [trained_losses(mode, 64, 8) for mode in MODES]
    assert all(abs(left[-1] - right[-1]) > 1e-4 for left, right in itertools.combinations(away, 2))


def test_every_forward_multiplier_acts_with_and_without_targets() -> None:
    """A GPT written out in plain operations with the multipliers of muP and CompleteP in their places."""
    rules = {"mode": "completep", "base_n_embd": 8, "base_n_layer": 1, "base_head_size": 4}
    settings = config({"n_layer": 2}, parametrization=rules | {"input_multiplier": 3.0, "output_multiplier": 5.0})
    model, idx = build_model(settings), tokens(1)
    x = 3.0 * (model.embedding.weight[idx[0]] + model.position.weight)
    for block in model.trunk.blocks:
        q, k, v = block.attention.qkv(block.attention_norm(x)).view(8, 3, 2, 8).permute(1, 2, 0, 3)
        scores = q @ k.mT * (math.sqrt(4) / 8)
        y = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1) @ v
        x = x + block.attention.out(y.transpose(0, 1).reshape(8, 16)) / 2
        x = x + block.ffn(block.ffn_norm(x), model._context(idx), 0) / 2
    logits = (model.final_norm(x) * 5.0 / 2) @ model.embedding.weight.T
    torch.testing.assert_close(model(idx)[0], logits, rtol=1e-5, atol=1e-6)
    targets = tokens(1, seed=1)
    assert model.loss(idx, targets).item() == pytest.approx(F.cross_entropy(logits, targets[0]).item(), rel=1e-5)


def test_the_base_of_a_swiglu_is_the_base_models_own_width() -> None:
    """8/3 of 32 is rounded up to 96, not 88, so the ratio of fan-ins is 704 / 96 and not the 8 of the widths."""
    base = {"mode": "mup", "base_n_embd": 32}
    tree = {"model": {"n_embd": 256, "n_head": 8, "vocab_size": 64, "ffn": "swiglu"}, "train": {"max_iters": 1}}
    rules = build_model(Config.model_validate(tree | {"parametrization": base}), "meta").rules
    small = {"model": tree["model"] | {"n_embd": 32, "n_head": 1}, "train": tree["train"]}
    assert Config.model_validate(small).model.ffn_hidden == 96
    assert rules.roles[Role.FFN_OUT].lr_multiplier == pytest.approx(96 / 704, rel=1e-12)
    named = tree | {"parametrization": base, "model": tree["model"] | {"ffn": {"kind": "swiglu", "hidden": 704}}}
    proportional = build_model(Config.model_validate(named), "meta").rules
    assert proportional.roles[Role.FFN_OUT].lr_multiplier == pytest.approx(1 / 8, rel=1e-12)
