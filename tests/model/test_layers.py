"""The leaves of the network against their formulas."""

import math

import pytest
import torch

from nanogpt.config.model import Model
from nanogpt.model.attention import explicit_attention, fused_attention
from nanogpt.model.context import Context
from nanogpt.model.ffn import FFNS
from nanogpt.model.layers import Norm, rotate, rotation_table


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_equal_their_formulas(kind: str) -> None:
    norm = Norm(6, kind, bias=True).double()
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(random(6, seed=seed))
    x = random(3, 6, seed=9)
    if kind == "rmsnorm":
        assert norm.bias is None
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
    else:
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain + norm.bias
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize(
    ("n_embd", "multiple", "hidden"), [(768, 32, 2048), (64, 32, 192), (100, 1, 267), (96, 64, 256)]
)
def test_swiglu_is_eight_thirds_as_wide_rounded_up(n_embd: int, multiple: int, hidden: int) -> None:
    model = Model.model_validate(
        {"n_embd": n_embd, "n_head": 1, "vocab_size": 8, "ffn": {"kind": "swiglu", "multiple_of": multiple}}
    )
    ffn = FFNS["swiglu"](model)
    assert hidden == math.ceil(8 * n_embd / 3 / multiple) * multiple
    assert ffn.gate.weight.shape == ffn.up.weight.shape == (hidden, n_embd)
    assert ffn.down.weight.shape == (n_embd, hidden)


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


@pytest.mark.parametrize("kind", [*ACTIVATIONS, "swiglu"])
def test_feed_forward_layers_equal_their_formulas(kind: str) -> None:
    model = Model.model_validate({"n_embd": 8, "n_head": 1, "vocab_size": 8, "ffn": kind, "bias": False})
    ffn = FFNS[kind](model).double()
    weights = {}
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(ffn.named_parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
            weights[name.partition(".")[0]] = parameter.T
    x = random(5, 8, seed=9)
    if kind == "swiglu":
        gate = x @ weights["gate"]
        expected = (gate / (1 + torch.exp(-gate)) * (x @ weights["up"])) @ weights["down"]
    else:
        assert ffn.up.weight.shape == (32, 8)
        expected = ACTIVATIONS[kind](x @ weights["up"]) @ weights["down"]
    torch.testing.assert_close(ffn(x, Context(None, None), 0), expected)


def test_rope_turns_each_pair_by_its_angle() -> None:
    table = rotation_table(20, 8, theta=100.0)
    x = random(1, 20, 1, 8)
    turned = rotate(x, table)
    for position in (0, 7, 19):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            left, right = x[0, position, 0, pair], x[0, position, 0, pair + 4]
            found = turned[0, position, 0, pair], turned[0, position, 0, pair + 4]
            assert found[0].item() == pytest.approx((left * math.cos(angle) - right * math.sin(angle)).item(), abs=1e-5)
            assert found[1].item() == pytest.approx((left * math.sin(angle) + right * math.cos(angle)).item(), abs=1e-5)


def test_rope_scores_depend_on_distance_only() -> None:
    table = rotation_table(64, 16, theta=10000.0)
    q, k = random(16).expand(1, 64, 1, 16), random(16, seed=1).expand(1, 64, 1, 16)
    scores = rotate(q, table)[0, :, 0] @ rotate(k, table)[0, :, 0].T
    for distance in (0, 1, 5, 30):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert (scores[:, 0] - scores[0, 0]).abs().max() > 0.1


@pytest.mark.parametrize("path", [explicit_attention, fused_attention])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_a_loop_over_heads(path: object, heads: int, kv_heads: int) -> None:
    q, k, v = random(2, 7, heads, 4), random(2, 7, kv_heads, 4, seed=1), random(2, 7, kv_heads, 4, seed=2)
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)
    found = (
        explicit_attention(q, k, v, mask, 0.3, 0.0)
        if path is explicit_attention
        else fused_attention(q, k, v, 0.3, 0.0)
    )
    for head in range(heads):
        shared = head * kv_heads // heads
        probabilities = (0.3 * q[:, :, head] @ k[:, :, shared].mT + mask).softmax(-1)
        torch.testing.assert_close(found[:, :, head], probabilities @ v[:, :, shared])
