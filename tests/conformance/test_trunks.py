"""What every trunk keeps, and what each of them is: the definitions, tested against short programs of their own."""

import copy
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Config
from nanogpt.config.model import kind_of
from nanogpt.config.trunks import COUNT_THEIR_OWN
from nanogpt.model import GPT, build_model
from nanogpt.model.block import Block
from nanogpt.model.chance import law_of, mean_of
from nanogpt.model.random2d import Counts, Random2D
from nanogpt.model.recurrent import Recurrent
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer
from nanogpt.probes import Probes
from parametrization import Role

VOCAB, TOKENS, WIDTH, LAYERS = 37, 12, 32, 4

LAW = {"kind": "poisson_lognormal", "mean_loops": 3}
VARIANTS: dict[str, dict[str, Any]] = {trunk: {"kind": trunk} for trunk in TRUNKS} | {
    "shared groups": {"kind": "shared", "groups": 3},
    "shared cycle": {"kind": "shared", "groups": 2, "order": "cycle"},
    "shared attention": {"kind": "shared", "scope": "attn"},
    "shared ffn": {"kind": "shared", "scope": "ffn", "groups": 2},
    "recurrent drawn": {"kind": "recurrent", "prelude": 1, "core": 2, "coda": 1, "depth": LAW},
    "recurrent truncated": {"kind": "recurrent", "depth": {"loops": 5}, "backprop_loops": 2},
    "recurrent drawn, truncated": {"kind": "recurrent", "inject": "add", "depth": LAW, "backprop_loops": 2},
    "recurrent noise": {"kind": "recurrent", "coda": 0, "state_init": "like_embed", "depth": {"kind": "lognormal"}},
    "recurrent bare": {"kind": "recurrent", "prelude": 0, "coda": 0, "inject": "none", "state_init": "input"},
    "recurrent add": {"kind": "recurrent", "core": 2, "inject": "add", "state_init": "input"},
    "hierarchical": {"kind": "random2d", "order": "hierarchical"},
    "parallel sum": {"kind": "random2d", "levels": "parallel", "combine": "sum"},
    "hierarchical parallel": {"kind": "random2d", "order": "hierarchical", "levels": "parallel", "vertical": [1, 5]},
}
any_trunk = pytest.mark.parametrize("trunk", VARIANTS.values(), ids=list(VARIANTS))
STEPS = (0, 1, 2, 3)


def make(trunk: dict[str, Any] | str, **sections: Any) -> Config:
    model = {"n_head": 4, "n_embd": WIDTH, "block_size": TOKENS, "vocab_size": VOCAB, "trunk": trunk}
    if kind_of(trunk) not in COUNT_THEIR_OWN:
        model["n_layer"] = LAYERS
    model |= sections.pop("model", {})
    return Config.model_validate({"model": model, "train": {"max_iters": 10}, **sections})


def tokens(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def perturbed(config: Config) -> GPT:
    """A model whose every tensor is random, so that no promise is kept by a symmetric start."""
    model, generator = build_model(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def gradients(model: GPT) -> dict[str, Tensor]:
    model.zero_grad()
    model.losses(tokens(), tokens(seed=1)).total.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@any_trunk
@pytest.mark.parametrize("step", STEPS)
def test_blocks_are_called_as_planned(trunk: dict[str, Any], step: int) -> None:
    model, calls = build_model(make(trunk)), []
    for number, block in enumerate(model.trunk.unique()):
        block.register_forward_pre_hook(
            lambda module, inputs, number=number: calls.append((inputs[2], number, torch.is_grad_enabled()))
        )
    model.at_step(step)
    model.loss(tokens(), tokens())
    planned = model.trunk.plan(model.trunk.schedule())
    assert calls == [(index, *application) for index, application in enumerate(planned)]


@any_trunk
@pytest.mark.parametrize("step", STEPS)
def test_flops_of_a_drawn_step_are_exactly_those_torch_counts(trunk: dict[str, Any], step: int) -> None:
    model = build_model(make(trunk, runtime={"attention": "explicit"}), "meta")
    model.at_step(step)
    idx = torch.zeros(2, TOKENS, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.loss(idx, idx).backward()
    assert counter.get_total_flops() == 2 * TOKENS * model.step_cost(step).flops_per_token


@any_trunk
def test_expected_usage_is_the_mean_over_many_draws(trunk: dict[str, Any]) -> None:
    built, draws = build_model(make(trunk), "meta").trunk, 4000
    found: Counter[Any] = Counter()
    for step in range(draws if built.drawn else 1):
        found.update(built.plan(built.draw(step)))
    expected = built.usage()
    assert set(found) <= set(expected)
    for application, times in expected.items():
        assert found[application] / (draws if built.drawn else 1) == pytest.approx(times, rel=0.05, abs=0.05)


@any_trunk
def test_shared_gradients_are_the_sums_over_untied_clones(trunk: dict[str, Any]) -> None:
    """Every application gets a block of its own with the same values; their gradients add up to the shared ones."""
    model = perturbed(make(trunk)).double()
    shared = gradients(model)
    plan = model.trunk.plan(model.trunk.schedule())
    clones = _untie(model, len(plan))
    gradients(model)
    found: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in model.trunk.named_parameters()}
    for (block, _), clone in zip(plan, clones, strict=True):
        owners = dict(model.trunk.unique()[block].named_parameters())
        for name, parameter in clone.named_parameters():
            owner = f"trunk.{names[id(owners[name])]}"
            if parameter.grad is not None:
                found[owner] = found[owner] + parameter.grad if owner in found else parameter.grad
    trained = {name: gradient for name, gradient in shared.items() if name.startswith("trunk.blocks.")}
    assert found.keys() == trained.keys()
    for name, gradient in trained.items():
        torch.testing.assert_close(gradient, found[name], rtol=1e-9, atol=1e-12)


def _untie(model: GPT, applications: int) -> list[Block]:
    """Let each application run a copy of its block."""
    clones: list[Any] = [None] * applications
    for block in model.trunk.unique():
        template = copy.deepcopy(block)

        def forward(x: Tensor, context: Any, application: int, template: Block = template) -> Tensor:
            clones[application] = copy.deepcopy(template)
            return clones[application](x, context, application)

        block.forward = forward  # type: ignore[method-assign]
    return clones


@any_trunk
def test_each_tensor_is_counted_once(trunk: dict[str, Any]) -> None:
    model = build_model(make(trunk))
    counts = model.parameter_counts()
    assert counts.total == sum(each.numel() for each in {id(each): each for each in model.parameters()}.values())
    assert len({id(parameter) for parameter in model.parameters()}) == len(list(model.named_parameters()))


@any_trunk
def test_evaluation_is_bit_equal_whatever_was_trained_in_between(trunk: dict[str, Any]) -> None:
    model = perturbed(make(trunk)).eval()
    first = model(tokens())
    torch.manual_seed(99)
    model.train().at_step(7)
    model(tokens())
    assert torch.equal(model.eval()(tokens()), first)
    assert torch.equal(perturbed(make(trunk)).eval()(tokens()), first)


@any_trunk
def test_a_pass_leaves_the_global_random_numbers_alone(trunk: dict[str, Any]) -> None:
    model = build_model(make(trunk))
    before = torch.get_rng_state()
    model.at_step(3)
    model.loss(tokens(), tokens())
    model.eval()(tokens())
    assert torch.equal(torch.get_rng_state(), before)


@any_trunk
def test_a_step_has_one_schedule_and_other_steps_have_others(trunk: dict[str, Any]) -> None:
    model, again = build_model(make(trunk), "meta").trunk, build_model(make(trunk), "meta").trunk
    other = build_model(make(trunk, seed=8), "meta").trunk
    for step in (17, 0, 5):
        model.step = again.step = step
        assert model.schedule() == again.schedule() == model.draw(step)
    drawn = [[one.draw(step) for step in range(50)] for one in (model, other)]
    assert (drawn[0] != drawn[1]) == model.drawn
    assert (len(set(map(str, drawn[0]))) > 1) == model.drawn


@any_trunk
def test_every_step_trains_every_block_that_it_applies(trunk: dict[str, Any]) -> None:
    model = build_model(make(trunk))
    for step in STEPS:
        model.at_step(step)
        found = gradients(model)
        for application in model.trunk.plan(model.trunk.schedule()):
            reached = [name for name in found if name.startswith(f"trunk.blocks.{application.block}.")]
            assert reached, "an applied block gets no gradient"
        for outside in ("embedding.weight", "final_norm.gain"):
            assert torch.count_nonzero(found[outside])


@any_trunk
def test_muon_and_adamw_take_steps_that_leave_a_block_out(trunk: dict[str, Any]) -> None:
    for kind in ("adamw", "muon"):
        config = make(trunk, optimizer=kind)
        model = build_model(config)
        optimizer = build_optimizer(model, config, "cpu")
        for step in range(6):
            model.at_step(step)
            model.losses(tokens(), tokens(seed=1)).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@any_trunk
def test_probes_see_every_application_and_every_block(trunk: dict[str, Any]) -> None:
    model = build_model(make(trunk))
    probes = Probes(model)
    probes.enabled = True
    for step in STEPS:
        model.at_step(step)
        for part in tokens(4).chunk(2):
            model.loss(part, part).backward()
        found = probes.collect()
        applications = len(model.trunk.plan(model.trunk.schedule()))
        assert sum(name.startswith("activation_rms.") for name in found) == applications
        assert sum(name.startswith("gradient_norm.") for name in found) == len(model.trunk.unique())
        model.zero_grad()


@any_trunk
def test_a_trunk_that_may_leave_a_block_out_says_so(trunk: dict[str, Any]) -> None:
    built = build_model(make(trunk), "meta").trunk
    used = [{application.block for application in built.plan(built.draw(step))} for step in range(200)]
    assert built.skips_blocks == any(len(blocks) < len(built.unique()) for blocks in used)


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


def recurrent(**arm: Any) -> dict[str, Any]:
    return {"kind": "recurrent", **arm}


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
    given = prelude(model._embed(tokens()), context, 0)
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
    exact = mean_of(law_of(config.model.trunk.depth))  # type: ignore[union-attr]
    assert exact == pytest.approx(mean, rel=0.01)
    draws = [trunk.draw(step) for step in range(10_000)]
    assert sum(draws) / len(draws) == pytest.approx(exact, rel=0.02)
    spread = (mean_of(law_of(config.model.trunk.depth), lambda r: r * r) - exact**2) ** 0.5  # type: ignore[union-attr]
    found = (sum(each**2 for each in draws) / len(draws) - (sum(draws) / len(draws)) ** 2) ** 0.5
    assert found == pytest.approx(spread, rel=0.05)
    assert min(draws) >= 1


def test_the_published_lognormal_is_one_of_ours() -> None:
    """mu 3.367 and sigma .435 clipped to [1, 100] are a mean of exp(mu + sigma^2 / 2) = 31.86."""
    law = law_of(make(recurrent(depth={"kind": "lognormal", "mean_loops": 31.86, "sigma": 0.435})).model.trunk.depth)  # type: ignore[union-attr]
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
        context, x = model._context(tokens()), model._embed(tokens())
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


# Parametrization


@pytest.mark.parametrize("kind", ["shared", "recurrent"])
def test_completep_keeps_the_residual_stream_at_any_number_of_loops(kind: str) -> None:
    """One block applied N times: under 1 / N neither the stream nor its change in ten steps of Adam grows with N."""
    found: dict[str, list[tuple[float, float]]] = {"completep": [], "sp": []}
    bare = {"prelude": 0, "coda": 0, "inject": "none", "state_init": "input"}
    for mode, sizes in found.items():
        for loops in (4, 8, 16):
            trunk: Any = "shared" if kind == "shared" else recurrent(**bare, depth={"loops": loops})
            base = {} if mode == "sp" else {"base_n_embd": 64, "base_n_layer": 1}
            config = make(
                trunk,
                model={"n_embd": 64} | ({"n_layer": loops} if kind == "shared" else {}),
                parametrization={"mode": mode, "residual_init": "plain", "init_std": 0.125, **base},
                optimizer={"learning_rate": 3e-3, "weight_decay": 0},
            )
            sizes.append(_stream(config))
    for column in (0, 1):
        steady, growing = ([sizes[column] for sizes in found[mode]] for mode in ("completep", "sp"))
        assert max(steady) / min(steady) < 1.05
        assert max(growing) / min(growing) > 1.5


def _stream(config: Config) -> tuple[float, float]:
    """The rms of what leaves the trunk at the start, and of its change in ten steps."""
    model, outputs = build_model(config), []
    model.trunk.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    optimizer = build_optimizer(model, config, "cpu")
    for _ in range(11):
        model.loss(tokens(8), tokens(8, seed=1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return outputs[0].square().mean().sqrt().item(), (outputs[10] - outputs[0]).square().mean().sqrt().item()


def whole_depths() -> dict[str, dict[str, Any]]:
    """The variants that a base model's depth, a whole number, can equal."""
    depths = {name: TRUNKS[trunk["kind"]].depth_of(make(trunk).model) for name, trunk in VARIANTS.items()}
    return {name: VARIANTS[name] for name, depth in depths.items() if depth == round(depth)}


@pytest.mark.parametrize("mode", ["mup", "depth_mup", "completep"])
@pytest.mark.parametrize("trunk", whole_depths().values(), ids=list(whole_depths()))
def test_at_the_base_every_mode_is_sp(trunk: dict[str, Any], mode: str) -> None:
    depth = TRUNKS[trunk["kind"]].depth_of(make(trunk).model)
    base = {"mode": mode, "base_n_embd": WIDTH, "base_n_layer": round(depth)}
    rules = build_model(make(trunk, parametrization=base), "meta").rules
    assert rules == build_model(make(trunk, parametrization={"residual_init": "plain"}), "meta").rules


def test_loops_and_layers_scale_apart() -> None:
    """alpha = 1/2 in layers of their own, 1 in loops: four times the loops make 1/4, four times the layers 1/2."""

    def rules(trunk: Any, layers: int) -> Any:
        base = {"mode": "depth_mup", "base_n_embd": WIDTH, "base_n_layer": 4}
        return build_model(make(trunk, model={"n_layer": layers}, parametrization=base), "meta").rules

    assert rules("shared", 16).residual_multiplier == 1 / 4
    assert rules("stack", 16).residual_multiplier == 1 / 2
    assert rules("shared", 16).roles[Role.HIDDEN].lr_multiplier == 1
    assert rules("stack", 16).roles[Role.HIDDEN].lr_multiplier == 1 / 2


def test_sp_starts_by_applications() -> None:
    rules = build_model(make(recurrent(prelude=2, core=3, coda=1, depth={"loops": 5})), "meta").rules
    assert rules.roles[Role.FFN_OUT].init_std == pytest.approx(0.02 / (2 * 18) ** 0.5)
