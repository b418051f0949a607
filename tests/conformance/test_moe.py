"""Every mixture of experts on every trunk: what tells a real one from a fake. Parametrized over the registries.

Equal to the dense layer where it must be, causal, every router trained, FLOPs as torch counts them, counts as on paper.
By default each pair of trunk, mixture and way of multiplying; the slow part, all of them together and the compiled
ones, takes about a minute and a half.
"""

import functools
import itertools
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Config
from nanogpt.config.ffns import Mixture
from nanogpt.config.trunks import COUNT_THEIR_OWN
from nanogpt.describe import _kept_by_autograd, _saved_bytes, model_facts
from nanogpt.model import GPT, build_model
from nanogpt.model.context import Context, Routed
from nanogpt.model.dense import ACTIVATIONS, FeedForward
from nanogpt.model.experts import Experts
from nanogpt.model.ffn import FFNS
from nanogpt.model.moe import SoftMoE, TopKMoE
from nanogpt.model.router import Router
from nanogpt.model.trunks import TRUNKS
from tests.conformance import trunk_models
from tests.conformance.trunk_models import TOKENS, VOCAB, WIDTH, tokens
from tests.covers import cover

DENSE = [*ACTIVATIONS, "swiglu"]
MIXTURES = {
    "soft": {"kind": "soft_moe", "experts": 4},
    "soft swiglu": {"kind": "soft_moe", "experts": 3, "expert": "swiglu"},
    "top-1": {"kind": "topk_moe", "experts": 4, "top_k": 1, "gate": "raw"},
    "top-2": {"kind": "topk_moe", "experts": 4},
    "top-2 raw": {"kind": "topk_moe", "experts": 4, "gate": "raw"},
    "top-3 of 3": {"kind": "topk_moe", "experts": 3, "top_k": 3},
    "aux": {"kind": "topk_moe", "experts": 4, "balance": "aux", "z_coefficient": 0.001},
    "aux of micro-batch": {"kind": "topk_moe", "experts": 4, "balance": "aux", "aux_scope": "micro_batch"},
    "unbalanced": {"kind": "topk_moe", "experts": 4, "balance": "none"},
    "shared": {"kind": "topk_moe", "experts": 4, "shared_experts": 1, "expert": "relu2"},
    "capacity": {"kind": "topk_moe", "experts": 4, "capacity_factor": 1.0},
    "swiglu": {"kind": "topk_moe", "experts": 4, "expert": "swiglu"},
}
any_trunk = pytest.mark.parametrize("trunk", TRUNKS)
any_mixture = pytest.mark.parametrize("ffn", MIXTURES.values(), ids=list(MIXTURES))
PATHS = ["loop", "grouped"]
any_trunk_and_mixture = pytest.mark.parametrize(("trunk", "ffn"), cover(list(TRUNKS), MIXTURES))


def make(trunk: str, ffn: Any, **sections: Any) -> Config:
    layers = {} if trunk in COUNT_THEIR_OWN else {"n_layer": 2}
    return trunk_models.make(trunk, model=layers | sections.pop("model", {}) | {"ffn": ffn}, **sections)


perturbed = functools.partial(trunk_models.perturbed, alpha=0.2)


def put_into(mixed: GPT, dense: GPT) -> None:
    """Give every expert the weights of the dense layer at its place, and all else the dense model's."""
    weights = dense.state_dict()
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            head, _, leaf = name.rpartition(".")
            if isinstance(mixed.get_submodule(head), Experts):
                matrix, bias = leaf.removesuffix("_bias"), leaf.endswith("_bias")
                source = f"{head.removesuffix('.experts')}.{matrix}.{'bias' if bias else 'weight'}"
                parameter.copy_(weights[source].expand_as(parameter))
            elif not isinstance(mixed.get_submodule(head), Router):
                parameter.copy_(weights[name])


def test_the_mixtures_here_are_those_of_the_registry() -> None:
    kinds = {kind for kind in FFNS if isinstance(make("stack", kind).model.ffn, Mixture)}
    assert kinds == {mixture["kind"] for mixture in MIXTURES.values()}


def test_one_expert_of_mixtral_s_kind_is_refused() -> None:
    for trunk in TRUNKS:
        with pytest.raises(ValueError, match="never learns"):
            make(trunk, {"kind": "topk_moe", "top_k": 1, "experts": 1})


ONE = {"soft": {"kind": "soft_moe"}, "top-1": {"kind": "topk_moe", "top_k": 1, "gate": "raw"}}


@pytest.mark.parametrize(("trunk", "expert", "ffn"), cover(list(TRUNKS), DENSE, ONE, strength=2))
def test_one_expert_is_the_dense_layer_to_the_last_bit(trunk: str, expert: str, ffn: dict[str, Any]) -> None:
    dense = perturbed(make(trunk, expert))
    mixed = build_model(make(trunk, ffn | {"experts": 1, "expert": expert}))
    put_into(mixed, dense)
    assert torch.equal(mixed(tokens()), dense(tokens()))
    for model in (mixed, dense):
        model.loss(tokens(), tokens(seed=1)).backward()
    torch.testing.assert_close(mixed.embedding.weight.grad, dense.embedding.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("trunk", "expert", "path"), cover(list(TRUNKS), DENSE, PATHS, strength=2))
def test_equal_experts_are_the_dense_layer_where_the_gates_add_up_to_one(trunk: str, expert: str, path: str) -> None:
    dense = perturbed(make(trunk, expert))
    exact = dense(tokens()).detach()

    @torch.no_grad()
    def difference(ffn: dict[str, Any]) -> float:
        settings = ffn | {"experts": 4, "expert": expert}
        mixed = perturbed(make(trunk, settings, runtime={"expert_matmul": path}))
        put_into(mixed, dense)
        return float((mixed(tokens()) - exact).abs().max() / exact.abs().max())

    assert difference({"kind": "soft_moe"}) < 2e-6
    assert difference({"kind": "topk_moe", "top_k": 3}) < 2e-6
    assert difference({"kind": "topk_moe", "top_k": 4, "gate": "raw"}) < 2e-6
    assert difference({"kind": "topk_moe", "top_k": 1, "gate": "raw"}) > 0.05
    assert difference({"kind": "topk_moe", "top_k": 2, "gate": "raw"}) > 0.02


@torch.no_grad()
@any_trunk_and_mixture
def test_a_mixture_is_the_sum_that_its_definition_says(trunk: str, ffn: dict[str, Any]) -> None:
    """Against a loop over tokens and experts, written out."""
    layer = perturbed(make(trunk, ffn)).eval().trunk.unique()[0].ffn
    x_BTD = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3))
    if isinstance(layer, TopKMoE) and layer.router.bias_E is not None:
        layer.router.bias_E.copy_(torch.linspace(-0.3, 0.3, len(layer.router.bias_E)))
    y_BTD = layer(x_BTD, Context(None, None), 0)
    for x, y in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        torch.testing.assert_close(y, _by_hand(layer, x), rtol=1e-4, atol=1e-5)


def _by_hand(layer: SoftMoE | TopKMoE, x: torch.Tensor) -> torch.Tensor:
    probabilities = (layer.router.weight @ x).softmax(0)
    chosen = range(len(probabilities))
    if isinstance(layer, TopKMoE):
        bias = layer.router.bias_E if layer.router.bias_E is not None else torch.zeros_like(probabilities)
        chosen = sorted(chosen, key=lambda e: float(-(probabilities[e] + bias[e])))[: layer.settings.top_k]
    norm = sum(probabilities[e] for e in chosen) if getattr(layer, "settings", None) and _renorm(layer) else 1.0
    total = sum(probabilities[e] / norm * _expert(layer.experts, e, x) for e in chosen)
    return total + sum(shared(x[None], None, 0)[0] for shared in getattr(layer, "shared", []))


def _renorm(layer: Any) -> bool:
    return layer.settings.gate == "renorm"


def _expert(experts: Experts, e: int, x: torch.Tensor) -> torch.Tensor:
    hidden = experts.up[e] @ x + experts.up_bias[e]
    if experts.gate is not None:
        hidden = torch.nn.functional.silu(experts.gate[e] @ x + experts.gate_bias[e]) * hidden
    else:
        hidden = experts.activation(hidden)
    return experts.down[e] @ hidden + experts.down_bias[e]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@any_mixture
def test_grouped_equals_the_loop(ffn: dict[str, Any], precision: str) -> None:
    """Values and every gradient, with an expert that no token reaches among them."""
    models = [perturbed(make("stack", ffn, runtime={"expert_matmul": path})) for path in ("loop", "grouped")]
    losses = []
    for model in models:
        for router in model.routers:
            if getattr(router, "bias_E", None) is not None and ffn.get("top_k", 2) < ffn["experts"]:
                router.bias_E[0] = -2.0  # p + b < 0: never chosen
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.losses(tokens(), tokens(seed=1))
        loss.total.backward()
        losses.append(loss.total.item())
        if getattr(model.routers[0], "bias_E", None) is not None and ffn.get("top_k", 2) < ffn["experts"]:
            assert loss.routed[0].statistics["load"][0] == 0
            assert torch.all(model.trunk.unique()[0].ffn.experts.up.grad[0] == 0)
    rough = precision == "bf16"
    assert losses[0] == pytest.approx(losses[1], rel=2e-3 if rough else 1e-6)
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        scale = float(left.grad.abs().max())
        torch.testing.assert_close(
            left.grad,
            right.grad,
            rtol=0,
            atol=scale * (5e-2 if rough else 1e-5),
            msg=lambda text, n=name: f"{n}: {text}",
        )


def test_grouped_takes_an_expanded_gradient_and_says_what_it_cannot_take() -> None:
    config = make("stack", {"kind": "topk_moe"}, model={"bias": False}, runtime={"expert_matmul": "grouped"})
    layer = build_model(config).trunk.unique()[0].ffn
    rows = torch.randn(6, WIDTH, requires_grad=True)
    load = torch.tensor([6, 0, 0, 0, 0, 0, 0, 0])
    layer.experts.sorted(rows, torch.zeros(6, dtype=torch.long), load).sum().backward()
    assert rows.grad is not None
    odd = make("stack", {"kind": "topk_moe", "hidden": 41}, runtime={"expert_matmul": "grouped"})
    with pytest.raises(ValueError, match=r"runtime\.expert_matmul: grouped: widths 41 and 32 are no multiples of 4"):
        build_model(odd)(tokens())
    auto = make("stack", {"kind": "topk_moe", "hidden": 41})
    assert build_model(auto)(tokens()).shape == (2, TOKENS, VOCAB)


@any_trunk_and_mixture
def test_every_router_has_a_gradient_of_the_cross_entropy_alone(trunk: str, ffn: dict[str, Any]) -> None:
    """A hard choice without a gate trains nothing, and an auxiliary loss can hide it: so it is left out here."""
    model = build_model(make(trunk, ffn))
    model.losses(tokens(4), tokens(4, seed=1)).cross_entropy.backward()
    unique = [block.ffn for block in model.trunk.unique()]
    assert len(model.routers) == len(unique) > 0
    for router in model.routers:
        others = model.trunk.unique()[router.number].ffn.experts.up.grad.abs().max()
        assert router.weight.grad.abs().max() > 1e-3 * others > 0, "far above rounding"


@any_trunk
def test_soft_mixtures_train_every_expert_at_every_token(trunk: str) -> None:
    model = build_model(make(trunk, MIXTURES["soft"]))
    model.loss(tokens(1, 2), tokens(1, 2, seed=1)).backward()
    for block in model.trunk.unique():
        assert torch.all(block.ffn.experts.up.grad.flatten(1).abs().amax(dim=1) > 0)


def reached(model: GPT, position: int) -> torch.Tensor:
    """How strongly each embedded token reaches the logits at `position`, (T,)."""
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.embedding.register_forward_hook(keep)
    logits = model(tokens(1))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), embedded[0])
    return gradient[0].abs().sum(dim=-1)


@pytest.mark.parametrize(
    ("trunk", "ffn", "path", "training"),
    cover(list(TRUNKS), MIXTURES, PATHS, {"training": True, "evaluation": False}, strength=2),
)
def test_no_gradient_from_the_future_and_no_choice_by_it(
    trunk: str, ffn: dict[str, Any], training: bool, path: str
) -> None:
    model = perturbed(make(trunk, ffn, runtime={"expert_matmul": path})).train(training)
    for position in (0, 5, TOKENS - 2):
        reach = reached(model, position)
        assert torch.count_nonzero(reach[position + 1 :]) == 0, "the future reaches the past"
        assert torch.count_nonzero(reach[: position + 1]) == position + 1
        # A choice has no gradient, so it is tried: other later tokens, other loads, the same past.
        changed = tokens(1)
        changed[:, position + 1 :] = tokens(1, seed=9)[:, position + 1 :]
        past = slice(0, position + 1)
        torch.testing.assert_close(model(changed)[:, past], model(tokens(1))[:, past], rtol=1e-4, atol=1e-5)


class _ExpertChoice(FeedForward):
    """What nobody may add: the expert takes the tokens that like it most, later ones included."""

    def __init__(self, inner: TopKMoE) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BTD: torch.Tensor, context: Context, application: int) -> torch.Tensor:
        weights_TE = self.inner.router(x_BTD[0]).softmax(dim=0)  # over the tokens
        outputs_ETD = self.inner.experts.every(x_BTD[0])
        context.routed.append(Routed(application, None, {}, 0))
        return (weights_TE.T[..., None] * outputs_ETD).sum(dim=0)[None]


def test_the_check_of_causality_sees_a_leak() -> None:
    model = perturbed(make("stack", MIXTURES["top-2"]))
    for block in model.trunk.unique():
        block.ffn = _ExpertChoice(block.ffn)
    assert torch.count_nonzero(reached(model, 5)[6:]) > 0


def count_grouped(a_shape: Any, b_shape: Any, *args: Any, **kwargs: Any) -> int:
    """2 x 3 dimensions: rows x fan-in against a stack. 2 x 2: the weights' gradient, the rows are summed over."""
    fan_out = b_shape[-1]
    return 2 * a_shape[0] * a_shape[1] * fan_out


@pytest.mark.parametrize(("trunk", "ffn", "path"), cover(list(TRUNKS), MIXTURES, PATHS, strength=2))
def test_flops_are_exactly_those_torch_counts(trunk: str, ffn: dict[str, Any], path: str) -> None:
    config = make(trunk, ffn, runtime={"expert_matmul": path, "attention": "explicit"})
    model = perturbed(config)
    mapping = {torch.ops.aten._grouped_mm: count_grouped}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model.losses(tokens(3, 8), tokens(3, 8, seed=1)).total.backward()
    plan = Counter(model.trunk.plan(model.trunk.schedule()))
    assert counter.get_total_flops() == 3 * 8 * sum(model.flops_of(plan, 8).values())
    if path == "grouped" and ffn["kind"] == "topk_moe":
        assert counter.get_flop_counts()["Global"][torch.ops.aten._grouped_mm] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("name", ["soft", "aux", "shared", "capacity"])
def test_a_compiled_mixture_equals_the_eager_one_at_any_load(name: str) -> None:
    config = make("stack", MIXTURES[name])
    eager, compiled = perturbed(config), perturbed(config)
    torch.compiler.reset()
    losses = torch.compile(compiled.losses)
    for seed in range(4):
        left, right = (forward(tokens(seed=seed), tokens(seed=9)) for forward in (eager.losses, losses))
        torch.testing.assert_close(left.total, right.total, rtol=1e-5, atol=1e-6)
        for one, other in zip(left.routed, right.routed, strict=True):
            assert (one.application, one.router) == (other.application, other.router)
            torch.testing.assert_close(one.statistics, other.statistics, check_dtype=False)
    left.total.backward()
    right.total.backward()
    for parameter, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5)


def gpt2(ffn: dict[str, Any]) -> Config:
    return Config.model_validate(
        {"model": {"vocab_size": 50257, "ffn": ffn}, "train": {"max_iters": 1}, "runtime": {"device": "cpu"}}
    )


def test_counts_at_gpt2_small_are_those_on_paper() -> None:
    four = model_facts(gpt2({"kind": "topk_moe", "experts": 4, "top_k": 1, "gate": "raw"}).model)
    assert (four.n_params, four.n_params_active) == (294_484_224, 124_476_672)
    eight = model_facts(gpt2({"kind": "topk_moe", "experts": 8, "top_k": 2}).model)
    assert (eight.n_params, eight.n_params_active) == (521_197_824, 181_182_720)
    assert round(eight.flops_per_token / 1e6, 1) == 1194.6
    soft = model_facts(gpt2({"kind": "soft_moe", "experts": 4}).model)
    assert soft.n_params == soft.n_params_active == 294_484_224
    dense = model_facts(gpt2({"kind": "gelu"}).model)
    router = 12 * 6 * 768 * 4
    assert soft.flops_by_module["feed-forward"] == 4 * dense.flops_by_module["feed-forward"] + router
    assert soft.parameters["router"] == 12 * 768 * 4


@pytest.mark.parametrize(("every", "routed"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
@pytest.mark.parametrize("kind", ["soft_moe", "topk_moe"])
def test_moe_every_counts_unique_blocks_and_leaves_the_others_dense(kind: str, every: int, routed: list[int]) -> None:
    config = make("stack", {"kind": kind, "moe_every": every, "expert": "relu2"}, model={"n_layer": 4})
    model = build_model(config)
    mixed = [index for index, block in enumerate(model.trunk.unique()) if isinstance(block.ffn, SoftMoE | TopKMoE)]
    assert mixed == routed
    for block in model.trunk.unique():
        layer = block.ffn.experts if hasattr(block.ffn, "experts") else block.ffn
        assert layer.activation is ACTIVATIONS["relu2"]
    assert [one.application for one in model.losses(tokens(), tokens()).routed] == routed


def test_memory_of_a_deep_model_is_told_from_two_shallow_ones_of_its_period() -> None:
    for ffn in ({"kind": "topk_moe", "moe_every": 2}, {"kind": "soft_moe"}):
        model = make("stack", ffn, model={"n_layer": 8}).model
        assert _saved_bytes(model, 3, False) == pytest.approx(_kept_by_autograd(model, 3), rel=0.01)


def test_active_parameters_leave_out_what_a_token_does_not_touch() -> None:
    for (experts, k), shared in itertools.product([(4, 1), (4, 2), (8, 4)], [0, 2]):
        ffn = {"kind": "topk_moe", "experts": experts, "top_k": k, "gate": "raw", "shared_experts": shared}
        model = build_model(make("stack", ffn))
        counts = model.parameter_counts()
        one = sum(p[0].numel() for block in model.trunk.unique() for p in block.ffn.experts.parameters())
        assert counts.total - counts.active == (experts - k) * one
