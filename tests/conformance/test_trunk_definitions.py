"""What each trunk is: definitions held against short programs, laws of the draws, sizes and prices."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.config import Config
from nanogpt.config.model import kind_of
from nanogpt.config.trunks import COUNT_THEIR_OWN
from nanogpt.model import GPT, build_model
from nanogpt.model.chance import law_of, mean_of
from nanogpt.model.random2d import Counts, Random2D
from nanogpt.model.recurrent import Recurrent
from tests.conformance.trunk_models import LAW, LAYERS, TOKENS, WIDTH, gradients, make, perturbed, recurrent, tokens

# ALBERT


def test_as_many_groups_as_layers_share_nothing() -> None:
    for scope in ("all", "attn", "ffn"):
        for order in ("sequence", "cycle"):
            trunk = {"kind": "shared", "scope": scope, "groups": LAYERS, "order": order}
            assert torch.equal(perturbed(make(trunk))(tokens()), perturbed(make("stack"))(tokens()))


def test_groups_follow_their_order() -> None:
    def blocks(layers: int, **arm: Any) -> list[int]:
        config = make({"kind": "shared", **arm}, model={"n_layer": layers})
        return [application.block for application in build_model(config, "meta").trunk.plan()]

    assert blocks(6, groups=3) == [0, 0, 1, 1, 2, 2]
    assert blocks(7, groups=3) == [int(layer / (7 / 3)) for layer in range(7)]
    assert blocks(5, groups=2, order="cycle") == [0, 1, 0, 1, 0]
    assert blocks(3) == [0, 0, 0]


def test_shared_halves_are_the_same_tensors_and_the_others_are_not() -> None:
    for scope, mine, theirs in (("attn", "attention", "ffn"), ("ffn", "ffn", "attention")):
        blocks = build_model(make({"kind": "shared", "scope": scope, "groups": 2})).trunk.unique()
        assert [getattr(block, mine) is getattr(blocks[0], mine) for block in blocks] == [True, True, False, False]
        assert len({id(getattr(block, theirs)) for block in blocks}) == LAYERS
        assert len({id(block.attention_norm) for block in blocks}) == LAYERS


# Recurrence


def test_a_bare_loop_is_albert() -> None:
    bare = recurrent(prelude=0, coda=0, inject="none", state_init="input", depth={"loops": LAYERS})
    assert torch.equal(perturbed(make(bare))(tokens()), perturbed(make("shared"))(tokens()))


def test_one_loop_behind_an_adapter_that_passes_the_input_is_a_stack() -> None:
    loop = perturbed(make(recurrent(prelude=2, core=1, coda=1, depth={"loops": 1})))
    stack = build_model(make("stack"))
    weights = {name: value for name, value in loop.state_dict().items() if "adapter" not in name}
    stack.load_state_dict(weights)
    assert isinstance(loop.trunk, Recurrent)
    assert loop.trunk.adapter is not None
    with torch.no_grad():
        loop.trunk.adapter.weight.copy_(torch.cat([torch.zeros(WIDTH, WIDTH), torch.eye(WIDTH)], dim=1))
    torch.testing.assert_close(loop(tokens()), stack(tokens()), rtol=0, atol=0)


def test_truncation_changes_gradients_and_nothing_else() -> None:
    for inject in ("add", "concat"):
        full, cut, loose = (
            perturbed(make(recurrent(inject=inject, depth={"loops": 5}, backprop_loops=kept))) for kept in (None, 2, 5)
        )
        losses = [model.loss(tokens(), tokens(seed=1)).item() for model in (full, cut, loose)]
        assert losses[0] == losses[1] == losses[2]
        whole, truncated, same = gradients(full), gradients(cut), gradients(loose)
        assert all(torch.equal(whole[name], same[name]) for name in whole)
        core = "trunk.blocks.1.attention.qkv.weight"
        assert not torch.allclose(whole[core], truncated[core], rtol=1e-2)
        assert torch.count_nonzero(truncated["trunk.blocks.0.attention.qkv.weight"])


def test_truncation_equals_a_detached_state() -> None:
    """The definition: what enters the first loop with gradients is a constant."""
    model = perturbed(make(recurrent(prelude=1, core=1, coda=0, inject="add", depth={"loops": 3}, backprop_loops=1)))
    found = gradients(model)
    model.zero_grad()
    context = model._context(tokens())
    prelude, core = model.trunk.unique()
    given = prelude(model._embed(tokens(), 0), context, 0)
    state = torch.zeros_like(given)
    for _ in range(2):
        state = core(state + given, context, 0).detach()
    logits = model.final_norm(core(state + given, context, 0)) @ model.embedding.weight.T
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(seed=1).flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-5, atol=1e-7)


def test_the_evaluation_depth_is_free_and_changes_the_output() -> None:
    model = perturbed(make(recurrent(depth=LAW))).eval()
    logits = {}
    for depth in ("1", "2", "3", "8"):
        model.trunk.evaluate_at(depth)
        logits[depth] = model(tokens())
    assert all(not torch.equal(left, right) for left, right in itertools.combinations(logits.values(), 2))
    model.trunk.evaluate_at(None)
    assert torch.equal(model(tokens()), logits["3"]), "the mean by default"


def test_noise_is_fixed_by_position_in_evaluation_and_differs_between_steps() -> None:
    model = perturbed(make(recurrent(state_init="like_embed"))).eval()
    assert torch.allclose(model(tokens())[:, :5], model(tokens()[:, :5]), atol=1e-6)
    assert torch.equal(model(tokens(4))[:2], model(tokens(4)[:2])) or torch.allclose(
        model(tokens(4))[:2], model(tokens(4)[:2]), atol=1e-6
    )
    model.train()
    losses = set()
    for step in range(3):
        model.at_step(step)
        losses.add(model.loss(tokens(), tokens()).item())
    assert len(losses) == 3
    trunk = model.trunk
    assert isinstance(trunk, Recurrent)
    noise = trunk._position_noise(torch.zeros(1, TOKENS, WIDTH))
    assert noise.std().item() == pytest.approx(0.02, rel=0.15)
    assert noise.abs().max() <= 0.06


@pytest.mark.parametrize("law", ["lognormal", "poisson_lognormal"])
@pytest.mark.parametrize("mean", [4, 32])
def test_laws_of_depth_have_their_mean_and_draws_follow_them(law: str, mean: int) -> None:
    config = make(recurrent(depth={"kind": law, "mean_loops": mean, "max_loops": 1000}))
    trunk = build_model(config, "meta").trunk
    exact = mean_of(law_of(config.model.trunk.depth))
    assert exact == pytest.approx(mean, rel=0.01)
    draws = [trunk.draw(step) for step in range(10_000)]
    assert sum(draws) / len(draws) == pytest.approx(exact, rel=0.02)
    spread = (mean_of(law_of(config.model.trunk.depth), lambda r: r * r) - exact**2) ** 0.5
    found = (sum(each**2 for each in draws) / len(draws) - (sum(draws) / len(draws)) ** 2) ** 0.5
    assert found == pytest.approx(spread, rel=0.05)
    assert min(draws) >= 1


def test_the_published_lognormal_is_one_of_ours() -> None:
    """mu 3.367 and sigma .435 clipped to [1, 100] are a mean of exp(mu + sigma^2 / 2) = 31.86."""
    law = law_of(make(recurrent(depth={"kind": "lognormal", "mean_loops": 31.86, "sigma": 0.435})).model.trunk.depth)
    median = next(r for r in sorted(law) if sum(law[k] for k in law if k <= r) >= 0.5)
    assert abs(median - 29) <= 1  # exp(3.367) = 28.99
    assert sum(law.values()) == pytest.approx(1.0)
    assert max(law) == 100


# Two-dimensional recurrence


def reference(model: GPT, counts: Counts, x: Tensor, context: Any) -> Tensor:
    """The definition, in ten lines."""
    arm: Any = model.config.trunk
    vertical, horizontal, verifier = (lambda x, block=block: block(x, context, 0) for block in model.trunk.unique())
    power = lambda f, n, x: x if n == 0 else power(f, n - 1, f(x))  # noqa: E731
    z = [x]
    for _ in counts.horizontal:
        z.append(vertical(x if arm.levels == "parallel" else z[-1]))
    u, r = [power(horizontal, n, each) for n, each in zip(counts.horizontal, z[1:], strict=True)], iter(counts.verifier)
    join = lambda parts: sum(parts) / (len(parts) if arm.combine == "mean" else 1)  # noqa: E731
    if arm.order == "flat":
        return power(verifier, next(r), join(u))
    while len(u) > 1:
        u = [power(verifier, next(r), join(u[i : i + 2])) if i + 1 < len(u) else u[i] for i in range(0, len(u), 2)]
    return u[0]


@pytest.mark.parametrize("order", ["flat", "hierarchical"])
@pytest.mark.parametrize("levels", ["parallel", "chained"])
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_two_dimensional_recurrence_is_its_definition(order: str, levels: str, combine: str) -> None:
    trunk = {"kind": "random2d", "order": order, "levels": levels, "combine": combine, "vertical": [1, 5]}
    model = perturbed(make(trunk))
    for step in range(8):
        model.at_step(step)
        context, x = model._context(tokens()), model._embed(tokens(), 0)
        expected = reference(model, model.trunk.schedule(), x, context)
        torch.testing.assert_close(model.trunk(x, context), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("order", "mean", "least", "most"), [("flat", 11.25, 3, 24), ("hierarchical", 12.5, 2, 32)])
def test_the_law_of_applications(order: str, mean: float, least: int, most: int) -> None:
    trunk = build_model(make({"kind": "random2d", "order": order}), "meta").trunk
    counts = [len(trunk.plan(trunk.draw(step))) for step in range(10_000)]
    assert sum(counts) / len(counts) == pytest.approx(mean, rel=0.01)
    assert sum(trunk.usage().values()) == mean
    assert min(counts) >= least
    assert max(counts) <= most
    ends = [Counts((n,) * n, (n,) * (1 if order == "flat" else n - 1)) for n in (1, 4)]
    assert [len(trunk.plan(end)) for end in ends] == [least, most]


@pytest.mark.parametrize("order", ["flat", "hierarchical"])
@pytest.mark.parametrize("levels", ["parallel", "chained"])
def test_depth_is_the_mean_of_the_longest_path(order: str, levels: str) -> None:
    trunk = {"kind": "random2d", "order": order, "levels": levels, "vertical": [1, 3], "horizontal": [1, 5]}
    built = build_model(make(trunk), "meta").trunk

    def longest(counts: Counts) -> int:
        paths = [h + (i if levels == "chained" else 1) for i, h in enumerate(counts.horizontal, start=1)]
        r = iter(counts.verifier)
        if order == "flat":
            return max(paths) + next(r)
        while len(paths) > 1:
            pairs = [paths[i : i + 2] for i in range(0, len(paths), 2)]
            paths = [max(p) + next(r) if len(p) == 2 else p[0] for p in pairs]
        return paths[0]

    found = [longest(built.draw(step)) for step in range(8000)]
    assert sum(found) / len(found) == pytest.approx(Random2D.depth_of(built.model), rel=0.02)


# Sizes and prices at GPT-2 small's width

SMALL: dict[str, Any] = {"n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257}
PRELUDE_CORE_CODA = recurrent(prelude=2, core=4, coda=2, depth={"loops": 32}, backprop_loops=8)
FACTS = {
    "stack": ("stack", 124_439_808, 854.4),
    "shared": ("shared", 46_473_216, 854.4),
    "three groups": ({"kind": "shared", "groups": 3}, 60_648_960, 854.4),
    "attention": ({"kind": "shared", "scope": "attn"}, 98_453_760, 854.4),
    "ffn": ({"kind": "shared", "scope": "ffn"}, 72_493_056, 854.4),
    "flat": ({"kind": "random2d", "levels": "parallel", "combine": "sum"}, 60_648_960, 815.5),
    "truncated": (PRELUDE_CORE_CODA, None, 3874.3),
}


@pytest.mark.parametrize(("trunk", "parameters", "megaflops"), FACTS.values(), ids=list(FACTS))
def test_parameters_and_flops_at_gpt2_small(trunk: Any, parameters: int | None, megaflops: float) -> None:
    layers = {} if kind_of(trunk) in COUNT_THEIR_OWN else {"n_layer": 12}
    config = Config.model_validate({"model": {**SMALL, **layers, "trunk": trunk}, "train": {"max_iters": 1}})
    model = build_model(config, "meta")
    if parameters is not None:
        assert model.parameter_counts().total == parameters
    assert model.flops_per_token() / 1e6 == pytest.approx(megaflops, abs=0.05)
