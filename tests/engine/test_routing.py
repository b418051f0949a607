"""Mixtures of experts in training: balancing, its state, what is recorded, and where the micro-batch is identity."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.__main__ import main
from nanogpt.config import Config, run_id, why_cut_matters
from nanogpt.configfile import dump_yaml
from nanogpt.data.stream import Batch
from nanogpt.model import GPT, build_model
from nanogpt.model.router import TopKRouter, switch_loss, within_capacity, z_loss
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer
from nanogpt.record import read_history, read_record
from nanogpt.replica import spread
from nanogpt.routing import Balancer
from nanogpt.team import ALONE
from nanogpt.train import accumulate_gradients

Make = Callable[..., Config]
TOP2 = {"kind": "topk_moe", "experts": 4}
OWN_DEPTH = {"recurrent", "random2d"}  # trunks that refuse n_layer
any_trunk = pytest.mark.parametrize("trunk", TRUNKS)


def settings(**keys: Any) -> Any:
    return Config.model_validate({"model": {"ffn": TOP2 | keys}, "train": {"max_iters": 1}}).model.ffn


def routed(tiny: Make, trunk: str = "stack", model: Any = None, **ffn: Any) -> Config:
    return tiny(model=on(trunk) | {"vocab_size": 32, "bias": True, "ffn": TOP2 | ffn} | (model or {}))


def on(trunk: str) -> dict[str, Any]:
    return {"trunk": trunk} | ({"n_layer": None} if trunk in OWN_DEPTH else {})


def batch(seed: int = 0, size: int = 4) -> Batch:
    idx = torch.randint(32, (size, 17), generator=torch.Generator().manual_seed(seed)).numpy()
    return Batch(idx[:, :-1], idx[:, 1:])


def step(model: GPT, balancer: Balancer, micro: int = 4, seed: int = 0, size: int = 4) -> torch.Tensor:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    exact: Any = torch.enable_grad
    replica = spread(model, ALONE, "ddp", compiled=False)
    return accumulate_gradients(
        replica, batch(seed, size), micro, scaler=scaler, autocast=exact, device=torch.device("cpu"),
        balancer=balancer,
    )  # fmt: skip


def test_the_switch_loss_is_one_at_balance_and_the_number_of_experts_at_collapse() -> None:
    uniform = torch.full((2, 8, 4), 0.25)
    even = torch.eye(4).repeat(2, 2, 1)
    collapsed = torch.tensor([1.0, 0, 0, 0]).expand(2, 8, 4)
    for scope in ("sequence", "micro_batch"):
        one = settings(top_k=1, gate="raw", balance="aux", aux_scope=scope)
        assert switch_loss(uniform, even, one).item() == pytest.approx(1.0)
        assert switch_loss(collapsed, collapsed, one).item() == pytest.approx(4.0)
        two = settings(balance="aux", aux_scope=scope)
        pair = torch.tensor([1.0, 1.0, 0, 0]).expand(2, 8, 4)
        assert switch_loss(uniform, even + even.roll(1, -1), two).item() == pytest.approx(1.0)
        assert switch_loss(pair / 2, pair, two).item() == pytest.approx(4.0 / 2)
    # Sequences that each collapse on another expert are balanced in the micro-batch, and in none of the sequences.
    other = torch.stack([torch.eye(4)[e].expand(8, 4) for e in range(4)])
    assert switch_loss(other, other, settings(top_k=1, gate="raw")).item() == pytest.approx(4.0)
    whole = settings(top_k=1, gate="raw", balance="aux", aux_scope="micro_batch")
    assert switch_loss(other, other, whole).item() == pytest.approx(1.0)
    assert z_loss(torch.zeros(1, 1, 4)).item() == pytest.approx(math.log(4) ** 2)


def test_the_bias_chooses_and_never_weights() -> None:
    router = TopKRouter(8, settings(experts=3, top_k=1, gate="raw"))
    assert router.bias_E is not None
    probabilities = torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True)
    before = router.choose(probabilities)
    assert (before.experts_Nk.tolist(), before.gates_Nk.tolist()) == ([[0]], [[0.5]])
    router.bias_E.copy_(torch.tensor([0.0, 0.0, 0.4]))
    after = router.choose(probabilities)
    assert (after.experts_Nk.tolist(), after.gates_Nk.tolist()) == ([[2]], [[pytest.approx(0.2)]])
    assert not router.bias_E.requires_grad
    assert "bias_E" not in dict(router.named_parameters())


@any_trunk
def test_the_bias_is_the_sum_of_signs_once_per_step_and_router(tiny: Make, trunk: str) -> None:
    config = routed(tiny, trunk, bias_rate=0.01)
    model = build_model(config)
    optimizer, balancer = build_optimizer(model, config, "cpu"), Balancer(model)
    expected = [torch.zeros(4) for _ in model.routers]
    assert len({id(router) for router in model.routers}) == len({id(block.ffn) for block in model.trunk.unique()})
    for seed in range(5):
        step(model, balancer, micro=2, seed=seed)
        assert model.routers[0].bias_E.grad is None
        for number, load_E in balancer.step.loads().items():
            expected[number] += 0.01 * torch.sign(load_E.mean() - load_E)
        balancer.finish()
        optimizer.step()
        optimizer.zero_grad()
    for router, bias_E in zip(model.routers, expected, strict=True):
        assert torch.count_nonzero(bias_E) > 0
        torch.testing.assert_close(router.bias_E, bias_E)


@any_trunk
def test_the_bias_follows_the_loads_of_all_micro_batches_and_processes(tiny: Make, trunk: str) -> None:
    start = build_model(routed(tiny, trunk))
    found = []
    for micro in (1, 2, 4):
        model = copy.deepcopy(start)
        step(model, balancer := Balancer(model), micro)
        balancer.finish()
        found.append([router.bias_E for router in model.routers])
    assert all(torch.equal(left, right) for each in found[1:] for left, right in zip(found[0], each, strict=True))

    # Two processes with half the batch each: the hook adds up, in one message.
    halves = [Batch(batch().x_BT[rows], batch().y_BT[rows]) for rows in (slice(0, 2), slice(2, 4))]
    sent: list[torch.Tensor] = []

    def send(sums: torch.Tensor) -> torch.Tensor:
        sent.append(sums)
        return sums

    models = [copy.deepcopy(start), copy.deepcopy(start)]
    hooks: list[Any] = [send, lambda sums: sums + sent[0]]
    for model, half, hook in zip(models, halves, hooks, strict=True):
        balancer = Balancer(model, hook)
        losses = model.losses(torch.from_numpy(half.x_BT), torch.from_numpy(half.y_BT))
        balancer.step.add(losses.routed)
        balancer.step.add(losses.routed, counted=False)
        balancer.finish()
    assert len(sent) == 1
    for one, both in zip(found[0], models[1].routers, strict=True):
        assert torch.equal(one, both.bias_E)


def collapsed(tiny: Make, **ffn: Any) -> tuple[Config, GPT]:
    """A model whose routers all prefer expert 0, by a direction that every normalised input has."""
    config = routed(tiny, experts=4, top_k=1, gate="raw", **ffn)
    model = build_model(config)
    with torch.no_grad():
        for block in model.trunk.unique():
            block.ffn_norm.bias.fill_(1.0)
            weight = block.ffn.router.weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
            weight -= weight.mean(dim=1, keepdim=True)
            weight[0] += 0.2
    return config, model


@pytest.mark.parametrize("ffn", [{"bias_rate": 0.02}, {"balance": "aux", "aux_coefficient": 0.03}], ids=["bias", "aux"])
def test_fifty_steps_of_balancing_undo_a_collapse(tiny: Make, ffn: dict[str, Any]) -> None:
    def most(settings: dict[str, Any]) -> tuple[float, float]:
        config, model = collapsed(tiny, **settings)
        optimizer, balancer = build_optimizer(model, config, "cpu"), Balancer(model)
        loads = []
        for seed in range(51):
            step(model, balancer, seed=seed)
            lines = balancer.step.read()
            assert lines is not None
            loads.append(max(line["max_load"] for line in lines))
            balancer.finish()
            optimizer.step()
            optimizer.zero_grad()
        return loads[0], sum(loads[-10:]) / 10

    start, end = most(ffn)
    _, without = most({"balance": "none"})
    assert start == 4.0, "collapsed: all tokens at one of four experts"
    assert end < 3.2
    assert without > 3.9


def test_an_auxiliary_loss_per_sequence_does_not_depend_on_the_cut(tiny: Make) -> None:
    def gradient(micro: int, **ffn: Any) -> torch.Tensor:
        model = build_model(routed(tiny, balance="aux", aux_coefficient=10.0, z_coefficient=1.0, **ffn))
        loss = step(model, Balancer(model), micro)
        assert loss.item() == pytest.approx(exact)  # the cross-entropy alone
        return model.routers[0].weight.grad

    plain = build_model(routed(tiny, balance="none"))
    exact = step(plain, Balancer(plain)).item()
    for micro in (1, 2):
        torch.testing.assert_close(gradient(micro), gradient(4), rtol=1e-4, atol=1e-6)
    parts, whole = (gradient(micro, aux_scope="micro_batch") for micro in (1, 4))
    assert float((parts - whole).abs().max()) > 1e-2 * float(whole.abs().max())


def test_auxiliary_losses_stay_out_of_what_is_reported(tiny: Make) -> None:
    model = build_model(routed(tiny, balance="aux", z_coefficient=0.1))
    idx, targets = torch.from_numpy(batch().x_BT), torch.from_numpy(batch().y_BT)
    losses = model.losses(idx, targets)
    assert losses.auxiliary is not None
    assert losses.auxiliary.item() > 0.01
    assert losses.total.item() == pytest.approx(losses.cross_entropy.item() + losses.auxiliary.item())
    assert model.loss(idx, targets).item() == losses.cross_entropy.item()
    assert model.eval().losses(idx, targets).auxiliary is None
    mean = float(model.scores(idx, targets).loss_sum_B.detach().sum()) / targets.numel()
    assert mean == pytest.approx(losses.cross_entropy.item())


def test_capacity_drops_the_latest_and_only_in_training(tiny: Make) -> None:
    chosen = torch.tensor([[1.0, 0, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1]])
    experts = torch.tensor([[0, 2], [2, 0], [1, 0], [2, 1]])
    served = within_capacity(chosen, experts, 0.75)  # ceil(0.75 * 8 / 3) = 2 places each
    assert served.tolist() == [[True, True], [True, True], [True, False], [False, True]]

    model = build_model(routed(tiny, capacity_factor=0.25, balance="none"))
    idx = torch.from_numpy(batch().x_BT)
    lines = model.losses(idx, idx).routed
    assert all(one.statistics["dropped"] >= one.statistics["load"].sum() * 0.7 for one in lines)
    free = build_model(routed(tiny, balance="none"))
    assert not torch.equal(model(idx), free(idx))
    assert torch.equal(model.eval()(idx), free.eval()(idx))
    assert all(one.statistics["dropped"] == 0 for one in model.losses(idx, idx).routed)


CUT = [
    ({}, {}, None),
    ({"balance": "aux"}, {}, None),
    ({"balance": "aux", "aux_scope": "micro_batch"}, {}, "ffn.aux_scope=micro_batch"),
    ({"capacity_factor": 1.25}, {}, "ffn.capacity_factor"),
    ({}, {"dropout": 0.1}, "dropout"),
]


@pytest.mark.parametrize(("ffn", "model", "reason"), CUT)
def test_the_micro_batch_is_identity_where_it_enters_the_result(
    tiny: Make, ffn: dict[str, Any], model: dict[str, Any], reason: str | None
) -> None:
    whole = routed(tiny, model=model, **ffn)
    named, cut = (
        whole.model_copy(update={"runtime": whole.runtime.model_copy(update={"micro_batch_size": m})}) for m in (4, 2)
    )
    assert why_cut_matters(whole.model_dump(mode="json")["model"]) == reason
    assert run_id(whole) == run_id(named), "resolved: the default is the whole batch"
    assert (run_id(whole) == run_id(cut)) == (reason is None)


def train(tiny: Make, folder: Path, *flags: str, **sections: Any) -> dict[str, Any]:
    config = tiny(**sections).model_dump(mode="json")
    (folder.parent / f"{folder.name}.yaml").write_text(dump_yaml(config))
    assert main(["train", str(folder.parent / f"{folder.name}.yaml"), f"--out_dir={folder}", *flags]) == 0
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("kind", ["soft_moe", "topk_moe"])
@any_trunk
def test_load_entropy_and_drops_are_recorded_by_application(tiny: Make, tmp_path: Path, trunk: str, kind: str) -> None:
    ffn = {"kind": kind, "experts": 4} | ({"capacity_factor": 0.5} if kind == "topk_moe" else {})
    metrics = train(tiny, tmp_path / "run", model=on(trunk) | {"ffn": ffn})
    assert read_record(tmp_path / "run" / "metrics.json").routing == metrics["routing"]
    history = read_history(tmp_path / "run" / "history.jsonl")
    assert all("routing" in line for line in history)
    assert history[-1]["val_routing"] == metrics["routing"]["evaluation"]
    assert history[-1]["routing"] == metrics["routing"]["training"]
    for line in history[-1]["routing"] + history[-1]["val_routing"]:
        assert sum(line["load"]) == pytest.approx(1.0)
        assert line["max_load"] == pytest.approx(4 * max(line["load"]))
        assert 0 < line["entropy"] <= math.log(4) + 1e-6
        assert line["logit_rms"] > 0
    drops = {line["dropped"] > 0 for line in history[-1]["routing"]}
    assert drops == {kind == "topk_moe"}
    assert {line["dropped"] for line in history[-1]["val_routing"]} == {0.0}
    assert all(line["dead"] == sum(share < 0.1 / 4 for share in line["load"]) for line in history[-1]["val_routing"])
    summary = metrics["routing"]
    assert summary["max_load"] == max(line["max_load"] for line in summary["evaluation"])
    assert summary["dead"] == sum(line["dead"] for line in summary["evaluation"])


def test_dense_runs_say_nothing_of_routing(tiny: Make, tmp_path: Path) -> None:
    metrics = train(tiny, tmp_path / "run")
    assert metrics["routing"] is None
    assert not any("routing" in line for line in read_history(tmp_path / "run" / "history.jsonl"))


def test_measuring_the_noise_scale_does_not_move_the_bias_twice(tiny: Make, tmp_path: Path) -> None:
    model = {"ffn": TOP2}
    plain = train(tiny, tmp_path / "plain", model=model)
    noisy = train(tiny, tmp_path / "noisy", model=model, runtime={"noise_scale_interval": 1})
    assert plain["val_loss"] == noisy["val_loss"]
    assert plain["routing"] == noisy["routing"]


def test_balanced_training_resumes_and_is_cut_without_a_trace(tiny: Make, tmp_path: Path) -> None:
    from tests.engine.test_train import assert_equal_states, final_state, losses, run

    config = tiny(model={"ffn": TOP2})
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_at=6)
    run(config, tmp_path / "parts")
    assert losses(tmp_path / "parts", attempt=2) == losses(tmp_path / "whole")
    assert_equal_states(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    biases = [value for name, value in final_state(tmp_path / "whole")["model"].items() if name.endswith("bias_E")]
    assert len(biases) == 2
    assert all(torch.count_nonzero(bias) > 0 for bias in biases)


def test_muon_takes_each_expert_for_itself_and_leaves_the_router_to_adamw(tiny: Make) -> None:
    config = routed(tiny).model_copy(
        update={"optimizer": tiny(optimizer={"kind": "muon", "learning_rate": 0.1, "weight_decay": 0.0}).optimizer}
    )
    model = build_model(config)
    optimizer = build_optimizer(model, config, "cpu")
    halves = {role: group["half"] for group in optimizer.param_groups for role in group["roles"]}
    assert (halves["router"], halves["hidden"], halves["ffn_out"]) == ("adamw", "muon", "muon")
    up = model.trunk.unique()[0].ffn.experts.up
    before = up.detach().clone()
    step(model, Balancer(model))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    values = torch.linalg.svdvals((up.detach() - before) / 0.1) / 2  # original: sqrt(fan_out / fan_in) = 2
    assert values.shape == (4, 16)
    assert float(values.median()) > 0.7
    assert float(values.max()) < 1.3
