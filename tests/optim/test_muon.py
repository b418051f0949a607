"""Muon against a plain float64 reference, its singular values, and how it shares a model and a run with AdamW."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.config import Config
from nanogpt.config.training import Muon as MuonSettings
from nanogpt.model import GPT, build_model
from nanogpt.model.attention import Attention
from nanogpt.optim import build_optimizer, lr_factor, muon, set_learning_rate
from nanogpt.optim.muon import FAMILIES, Muon, MuonAdamW
from parametrization import MODES, MUON_ROLES, WEIGHT_DECAY_RULES, Role

SCALES = ("original", "match_rms_adamw", "spectral")
any_family = pytest.mark.parametrize("family", FAMILIES)
any_scale = pytest.mark.parametrize("scale", SCALES)

MODEL = {"n_layer": 4, "n_head": 2, "n_embd": 32, "block_size": 8, "vocab_size": 11, "n_kv_head": 1}


def make(mode: str = "completep", optimizer: dict[str, Any] | None = None, **parametrization: Any) -> Config:
    return Config.model_validate(
        {
            "model": MODEL | {"tie_embeddings": False, "qk_norm": True},
            "train": {"max_iters": 10},
            "optimizer": {"kind": "muon", "learning_rate": 0.02, "weight_decay": 0.3, "adamw_learning_rate": 3e-3}
            | {"adamw_weight_decay": 0.1}
            | (optimizer or {}),
            "parametrization": {"mode": mode, "base_n_embd": 16, "base_n_layer": 2} | parametrization,
        }
    )


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    made = []
    for seed, shape in enumerate(shapes):
        made.append(torch.nn.Parameter(random(*shape, seed=seed, dtype=dtype)))
        made[-1].grad = random(*shape, seed=100 + seed, dtype=dtype)
    return made


def steps(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Steps with gradients that depend on nothing but the number of the step and the place of the parameter."""
    for step in range(count):
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = random(*parameter.shape, seed=1000 * step + index, dtype=parameter.dtype)
        optimizer.step()


def reference(weight: Tensor, gradients: list[Tensor], settings: MuonSettings) -> Tensor:
    """Muon in float64, one matrix at a time, in the words of its definition."""
    weight, momentum = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    mean_square = torch.zeros(len(weight), 1, dtype=torch.float64)
    fan_out, fan_in = weight.shape
    factor = {
        "original": max(1, fan_out / fan_in) ** 0.5,
        "match_rms_adamw": 0.2 * max(fan_out, fan_in) ** 0.5,
        "spectral": (fan_out / fan_in) ** 0.5,
    }[settings.scale]
    coefficients, margin = FAMILIES[settings.coefficients]
    mu = settings.momentum
    for gradient in gradients:
        momentum = mu * momentum + (1 - mu) * gradient.double()
        x = mu * momentum + (1 - mu) * gradient.double() if settings.nesterov else momentum
        x = x / x.norm() / margin
        for step in range(settings.ns_steps):
            a, b, c = coefficients[min(step, len(coefficients) - 1)]
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        if settings.normuon is not None:
            mean_square = settings.normuon * mean_square + (1 - settings.normuon) * x.square().mean(1, keepdim=True)
            rescaled = x / mean_square.sqrt()
            x = rescaled * x.norm() / rescaled.norm()
        weight = weight * (1 - settings.learning_rate * settings.weight_decay)
        weight = weight - settings.learning_rate * factor * x
    return weight


def options(settings: MuonSettings) -> dict[str, Any]:
    names = ("weight_decay", "momentum", "nesterov", "ns_steps", "coefficients", "scale", "normuon")
    return {"lr": settings.learning_rate} | {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize("normuon", [None, 0.9], ids=["muon", "normuon"])
@pytest.mark.parametrize("nesterov", [True, False])
@any_family
@any_scale
def test_three_steps_are_the_definitions(scale: Any, family: Any, nesterov: bool, normuon: float | None) -> None:
    settings = MuonSettings(scale=scale, coefficients=family, nesterov=nesterov, normuon=normuon, weight_decay=0.5)
    shapes = [(12, 12), (12, 12), (24, 6), (6, 24), (24, 6)]
    exact, rounded = parameters(shapes, torch.float64), parameters(shapes)
    for group in (exact, rounded):
        steps(Muon(group, **options(settings)), 3)
    for index, shape in enumerate(shapes):
        start = random(*shape, seed=index, dtype=torch.float64)
        gradients = [random(*shape, seed=1000 * step + index, dtype=torch.float64) for step in range(3)]
        expected = reference(start, gradients, settings)
        torch.testing.assert_close(exact[index].detach(), expected, rtol=1e-10, atol=1e-12)
        # float32 weights get a bfloat16 update: the error is measured against the size of what was added.
        error = (rounded[index].detach().double() - expected).norm() / (start - expected).norm()
        assert error < 0.03, shape


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_torchs_own_muon_agrees(scale: str) -> None:
    shapes = [(32, 32), (64, 16), (16, 64)]
    ours, theirs = parameters(shapes), parameters(shapes)
    steps(Muon(ours, lr=0.02, scale=scale), 3)
    steps(torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn=scale), 3)
    for start, left, right in zip(parameters(shapes), ours, theirs, strict=True):
        moved = (left - start).norm()
        assert (left - right).norm() < 0.02 * moved
        assert moved > 0.1


@pytest.mark.parametrize("normuon", [None, 0.9], ids=["muon", "normuon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_updates_equal_looped_ones(dtype: torch.dtype, normuon: float | None) -> None:
    shapes = [(24, 24), (24, 24), (48, 24), (24, 48), (48, 24), (24, 24)]
    stacked, looped = parameters(shapes, dtype), parameters(shapes, dtype)
    steps(Muon(stacked, stacked=True, normuon=normuon), 3)
    steps(Muon(looped, stacked=False, normuon=normuon), 3)
    tolerance = 1e-12 if dtype == torch.float64 else 0.01
    for start, left, right in zip(parameters(shapes, dtype), stacked, looped, strict=True):
        assert (left - right).norm() <= tolerance * (left - start).norm()


@pytest.mark.parametrize(("shape", "products"), [((64, 65), 1), ((512, 513), 1), ((513, 514), 3), ((512, 1024), 2)])
def test_small_matrices_are_stacked_and_large_ones_are_not_on_a_cpu(
    shape: tuple[int, int], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(muon, "orthogonalize", lambda update, *_: seen.append(update) or update)
    Muon(parameters([shape] * 3)).step()
    assert len(seen) == products


@pytest.mark.parametrize("normuon", [None, 0.9], ids=["muon", "normuon"])
def test_blocks_of_rows_are_matrices_of_their_own(normuon: float | None) -> None:
    rows = [12, 4, 4]
    fused, split, whole = (parameters([(20, 12)], torch.float64)[0] for _ in range(3))
    blocks = [torch.nn.Parameter(block.clone()) for block in split.detach().split(rows)]
    optimizers = [
        Muon([{"params": [fused], "rows": rows}], normuon=normuon),
        Muon(blocks, normuon=normuon),
        Muon([whole], normuon=normuon),
    ]
    for step in range(3):
        gradient = random(20, 12, seed=step, dtype=torch.float64)
        fused.grad, whole.grad = gradient.clone(), gradient.clone()
        for block, part in zip(blocks, gradient.split(rows), strict=True):
            block.grad = part.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused.detach(), torch.cat([b.detach() for b in blocks]), rtol=1e-10, atol=1e-12)
    assert (fused - whole).norm() > 0.1 * (fused - split).norm(), "Q, K and V together are another update"


def test_experts_are_matrices_of_their_own() -> None:
    (experts,) = parameters([(3, 8, 16)], torch.float64)
    apart = [torch.nn.Parameter(expert.clone()) for expert in experts.detach()]
    for expert, gradient in zip(apart, experts.grad, strict=True):
        expert.grad = gradient.clone()
    for optimizer in (Muon([experts]), Muon(apart)):
        optimizer.step()
    torch.testing.assert_close(experts.detach(), torch.stack([e.detach() for e in apart]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_orthogonalizing_leaves_momentum_and_gradients_alone(nesterov: bool, stacked: bool) -> None:
    """torch 2.13's Muon normalises the momentum in place when weights are bfloat16 and nesterov is off."""
    weights = parameters([(16, 16), (16, 8)], torch.bfloat16)
    optimizer = Muon(weights, nesterov=nesterov, stacked=stacked)
    before = [weight.grad.clone() for weight in weights]
    optimizer.step()
    for weight, gradient in zip(weights, before, strict=True):
        assert torch.equal(weight.grad, gradient)
        expected = torch.zeros_like(gradient).lerp_(gradient, 0.05)
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], expected)


def test_vectors_are_refused_and_parameters_without_gradient_stay() -> None:
    with pytest.raises(ValueError, match=r"not a shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    still, moving = parameters([(4, 8), (4, 8)])
    still.grad, before = None, still.detach().clone()
    Muon([still, moving]).step()
    assert torch.equal(still, before)


def expected_half(name: str, role: Role) -> str:
    """By the parameter's place in the model, said again without the table of roles."""
    return "muon" if name.startswith("trunk.blocks.") and name.endswith(".weight") and "norm" not in name else "adamw"


@any_scale
@pytest.mark.parametrize("rule", WEIGHT_DECAY_RULES)
@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_has_its_half_its_rate_and_its_decay(mode: str, rule: str, scale: str) -> None:
    config = make(mode, {"scale": scale}, weight_decay_rule=rule)
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu", steps=10)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)
    m_n, alpha = (1, None) if mode == "sp" else (2, {"depth_mup": 0.5, "completep": 1.0}.get(mode))
    depth = 1.0 if alpha is None else 2 ** (alpha - 1)
    roles = model.roles()
    for name, parameter in model.named_parameters():
        group, role = groups[id(parameter)], roles[name]
        assert group["half"] == expected_half(name, role)
        assert (role in MUON_ROLES) == (group["half"] == "muon")
        if group["half"] == "muon":
            width = m_n**-0.5 if scale == "match_rms_adamw" else 1.0
            decay = {"width": 0.3 / width, "coupled": 0.3, "sqrt": 0.3 * width**-0.5}.get(rule)
            decay = 0.3 / (0.02 * width * depth * (10 if rule == "tau_epoch" else 1)) if decay is None else decay
            assert group["lr"] == pytest.approx(0.02 * width * depth, rel=1e-12)
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.02 * width * depth * decay, rel=1e-12)
            assert group["rows"] == ([32, 16, 16] if "qkv" in name else None)
        else:
            row = model.rules.roles[role]
            decay = 0.1 * row.weight_decay_multiplier / {"independent": 3e-3, "tau_epoch": 3e-2}.get(rule, 1)
            assert group["lr"] == pytest.approx(3e-3 * row.lr_multiplier, rel=1e-12)
            assert group["weight_decay"] == pytest.approx(decay if parameter.dim() > 1 else 0, rel=1e-12)
            assert group["eps"] == 1e-8 * row.eps_multiplier
            assert group["betas"] == (0.9, 0.95)


def test_lr_times_decay_has_no_width_in_it() -> None:
    products = {}
    for scale in SCALES:
        for width in (32, 128):
            config = Config.model_validate(
                make("mup", {"scale": scale}).model_dump() | {"model": MODEL | {"n_embd": width}}
            )
            groups = build_optimizer(build_model(config, "meta"), config, "meta").param_groups
            products[scale, width] = {g["lr"] * g["weight_decay"] for g in groups if g["half"] == "muon"}
    for values in products.values():
        assert sorted(values) == pytest.approx([0.02 * 0.3] * len(values), rel=1e-12)
        assert values


def test_scheduling_keeps_both_halves_on_their_own_peaks() -> None:
    config = make("depth_mup", {"scale": "match_rms_adamw"})
    optimizer = build_optimizer(build_model(config), config, "cpu")
    peaks = [group["lr"] for group in optimizer.param_groups]
    by_half = {half: {g["lr"] for g in optimizer.param_groups if g["half"] == half} for half in ("muon", "adamw")}
    assert not by_half["muon"] & by_half["adamw"]
    assert len(by_half["adamw"]) > 1, "the test needs groups that differ"
    for step in range(10):
        share = lr_factor(config.schedule, step, 10, 0.02)
        set_learning_rate(optimizer, 0.02 * share)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([peak * share for peak in peaks], rel=1e-12)


def test_the_two_halves_rates_are_independent() -> None:
    """Another AdamW rate moves no matrix of the backbone in the first step, and another Muon rate nothing else."""
    moved = {}
    for name, settings in {"base": {}, "muon": {"learning_rate": 0.05}, "adamw": {"adamw_learning_rate": 1e-4}}.items():
        model, _ = stepped(make(optimizer=settings), 1)
        moved[name] = {key: value.detach() for key, value in model.named_parameters()}
    roles = build_model(make(), "meta").roles()
    for key, role in roles.items():
        same, other = ("adamw", "muon") if role in MUON_ROLES else ("muon", "adamw")
        assert torch.allclose(moved["base"][key], moved[same][key], rtol=0, atol=1e-9), key
        assert not torch.allclose(moved["base"][key], moved[other][key], rtol=0, atol=1e-6), key


def batch(step: int) -> Tensor:
    return torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(step))


def stepped(config: Config, count: int, model: GPT | None = None, first: int = 0) -> tuple[GPT, MuonAdamW]:
    model = model or build_model(config)
    optimizer = build_optimizer(model, config, "cpu")
    assert isinstance(optimizer, MuonAdamW)
    advance(model, optimizer, range(first, first + count))
    return model, optimizer


def advance(model: GPT, optimizer: torch.optim.Optimizer, which: range) -> list[float]:
    losses = []
    for step in which:
        optimizer.zero_grad()
        loss = model.loss(batch(step), batch(step).roll(-1, dims=1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_saved_state_goes_on_bit_exactly(tmp_path: Any) -> None:
    config = make(optimizer={"normuon": 0.9})
    model, optimizer = stepped(config, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    advance(model, optimizer, range(3, 6))

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = build_model(config)
    again.load_state_dict(saved["model"])
    restored = build_optimizer(again, config, "cpu")
    restored.load_state_dict(saved["optimizer"])
    advance(again, restored, range(3, 6))
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    set_learning_rate(restored, 0.0)
    before = copy.deepcopy(again.state_dict())
    advance(again, restored, range(6, 7))
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items()), "a rate did not arrive"


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("normuon", [None, 0.9], ids=["muon", "normuon"])
def test_accumulated_gradients_give_the_whole_batchs_update(parts: int, normuon: float | None) -> None:
    """In float64, where updates are orthogonalised in float64, so that no rounding to bfloat16 hides a difference."""
    config = make(optimizer={"normuon": normuon})
    whole, cut = build_model(config).double(), build_model(config).double()
    idx = torch.cat([batch(0), batch(1)])
    for model, count in ((whole, 1), (cut, parts)):
        optimizer = build_optimizer(model, config, "cpu")
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            for part in idx.chunk(count):
                (model.loss(part, part.roll(-1, dims=1)) / count).backward()
            optimizer.step()
    for (name, left), right in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_an_overflow_leaves_out_the_whole_step() -> None:
    """GradScaler asks one optimizer, once: a half that skips by itself would let the other one go on."""
    config = make()
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy(model.state_dict())
    for poison in (True, False):
        optimizer.zero_grad()
        scaler.scale(model.loss(batch(0), batch(1))).backward()
        if poison:
            model.embedding.weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert (changed == []) if poison else len(changed) > len(before) / 2
    assert scaler.get_scale() == 2.0


@any_scale
def test_base_shape_needs_no_multiplier(scale: str) -> None:
    """At the base shape every mode has SP's groups: what was tuned there is what holds there."""
    settings = {"scale": scale}
    found = []
    for mode in MODES:
        config = make(mode, settings, base_n_embd=32, base_n_layer=4)
        groups = build_optimizer(build_model(config, "meta"), config, "meta").param_groups
        found.append([(g["half"], g["lr"], g["weight_decay"], g["roles"]) for g in groups])
    assert all(groups == found[0] for groups in found)
    assert math.isclose(found[0][0][1], 0.02)


def test_split_rows_are_the_models_own() -> None:
    config = make()
    model = build_model(config, "meta")
    groups = [group for group in build_optimizer(model, config, "meta").param_groups if group.get("rows")]
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(groups) == 1
    assert groups[0]["rows"] == attentions[0].qkv_rows
    assert [id(p) for p in groups[0]["params"]] == [id(module.qkv.weight) for module in attentions]


def change(config: Config, boost: float = 1.0) -> float:
    """How much the last feed-forward layer's output moved in eight steps on one batch, mean absolute value."""
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu")
    for group in optimizer.param_groups:
        group["lr"] *= boost if group["half"] == "muon" else 1.0
    outputs: list[Tensor] = []
    model.trunk.blocks[-1].ffn.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    idx = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))
    for _ in range(9):
        optimizer.zero_grad()
        model.loss(idx, idx.roll(-1, dims=1)).backward()
        optimizer.step()
    return (outputs[-1] - outputs[0]).abs().mean().item()


@any_scale
def test_the_width_rule_keeps_activations_in_place(scale: str) -> None:
    """The slope of log change over log width, from 32 to 128; a rate with sqrt(m) too much must show one."""
    # The feed-forward's first matrix moves by the same amount at the base, whatever the scale.
    rate = 0.02 if scale != "match_rms_adamw" else 0.02 / (0.2 * math.sqrt(4 * 32)) * 2
    changes, uncorrected = {}, {}
    for width in (32, 128):
        tree = make("mup", {"scale": scale, "learning_rate": rate, "adamw_learning_rate": 1e-3}, base_n_embd=32)
        shape = {"n_layer": 2, "n_head": width // 16, "n_embd": width, "block_size": 32, "vocab_size": 64}
        config = Config.model_validate(tree.model_dump() | {"model": shape})
        changes[width] = change(config)
        uncorrected[width] = change(config, boost=math.sqrt(width / 32))
    slopes = [math.log(found[128] / found[32]) / math.log(4) for found in (changes, uncorrected)]
    assert abs(slopes[0]) <= 0.15
    assert slopes[1] >= 0.25
