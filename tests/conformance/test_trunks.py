"""What every trunk keeps: calls as planned, exact FLOPs, shared gradients, schedules by step, parametrization.

The slow part, FLOPs at more steps, takes about 10 s.
"""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Config
from nanogpt.model import GPT, build_model
from nanogpt.model.block import Block
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer
from nanogpt.probes import Probes
from parametrization import Role
from tests.conformance.trunk_models import (
    STEPS,
    TOKENS,
    VARIANTS,
    WIDTH,
    any_trunk,
    gradients,
    make,
    perturbed,
    recurrent,
    tokens,
)
from tests.covers import cover


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


@pytest.mark.parametrize(("trunk", "step"), cover(VARIANTS, STEPS))
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

        block.forward = forward
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
