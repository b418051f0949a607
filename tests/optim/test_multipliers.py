"""What acts on each tensor in training: lr x weight decay, directly, and multipliers that a checkpoint brings back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.config import Config
from nanogpt.model import build_model
from nanogpt.optim import build_optimizer, set_learning_rate
from nanogpt.progress import Clock, Progress, pack, unpack
from nanogpt.record import attempt_folder
from nanogpt.replica import spread
from nanogpt.team import ALONE
from parametrization import MODES, Role

LR, DECAY, STEPS = 2e-3, 0.1, 10
WIDTH, DEPTH, FFN = 4.0, 3.0, 6.0  # ratios to the base; the FFN's is not the model's


def make(mode: str, rule: str = "width") -> Config:
    return Config.model_validate(
        {
            "model": {"n_layer": 6, "n_head": 4, "n_embd": 64, "block_size": 8, "vocab_size": 11}
            | {"tie_embeddings": False, "ffn": {"kind": "gelu", "hidden": 96}},
            "train": {"max_iters": STEPS},
            "optimizer": {"learning_rate": LR, "weight_decay": DECAY},
            "parametrization": {"mode": mode, "base_n_embd": 16, "base_n_layer": 2, "base_ffn_hidden": 16}
            | {"weight_decay_rule": rule},
        }
    )


def expected(mode: str, rule: str, role: Role) -> float:
    """lr x weight decay of one tensor, written out without the code's factors."""
    if not role.is_matrix:
        return 0.0
    if rule in ("independent", "tau_epoch"):
        return DECAY if rule == "independent" else DECAY / STEPS
    ratio = {Role.HIDDEN: WIDTH, Role.ATTENTION_OUT: WIDTH, Role.FFN_OUT: FFN}.get(role, 1.0)
    outside = role in (Role.EMBEDDING, Role.POSITION, Role.READOUT)
    if mode == "sp" or outside:
        return LR * DECAY
    depth = DEPTH**-0.5 if mode == "depth_mup" else 1.0
    return LR * DECAY * depth * {"width": 1.0, "coupled": 1 / ratio, "sqrt": ratio**-0.5}[rule]


@pytest.mark.parametrize("rule", ["width", "coupled", "sqrt", "independent", "tau_epoch"])
@pytest.mark.parametrize("mode", MODES)
def test_each_tensor_loses_its_share_per_step(mode: str, rule: str) -> None:
    """A coordinate check does not see a wrong decay; the product that acts on a tensor does.

    The gradient is zero, so that a step does nothing but decay: the weights themselves show the product.
    """
    config = make(mode, rule)
    model = build_model(config).double()
    optimizer = build_optimizer(model, config, "cpu", steps=STEPS)
    roles, start = model.roles(), {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = start[name] * (1 - expected(mode, rule, roles[name]))
        torch.testing.assert_close(parameter.detach(), kept, rtol=1e-12, atol=1e-15, msg=name)


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    keys = ("lr", "lr_multiplier", "weight_decay", "eps", "roles")
    return [{key: group[key] for key in keys} for group in optimizer.param_groups]


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_restores_every_multiplier(mode: str, tmp_path: Path) -> None:
    config, folder = make(mode), tmp_path / "run"
    attempt_folder(folder, 1).mkdir(parents=True)
    model, scaler = build_model(config), torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(model, config, "cpu")
    before = settings(optimizer)
    alone = spread(model, ALONE, "ddp", compiled=False)
    checkpoint.save(folder, 1, 5, pack("0" * 12, Clock(Progress(step=5)), model, optimizer, scaler, alone))
    fresh_model = build_model(config)
    fresh = build_optimizer(fresh_model, config, "cpu")
    for group in fresh.param_groups:
        group.update(lr=9.0, lr_multiplier=9.0, weight_decay=9.0, eps=9.0)
    loaded = checkpoint.load_latest(folder)
    assert loaded is not None
    unpack(loaded.state, fresh, scaler, alone)
    assert settings(fresh) == before
    set_learning_rate(fresh, LR / 2)
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] / 2 for group in before]
    assert fresh_model.rules == model.rules


def test_a_resumed_run_keeps_the_forward_multipliers(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """They are no parameters and in no checkpoint: the run's own config.yaml brings them back."""
    from nanogpt.configfile import load_config
    from nanogpt.describe import resolve
    from nanogpt.runfolder import write_folder

    rules = {"mode": "completep", "base_n_embd": 4, "base_n_layer": 1, "base_head_size": 4}
    config = resolve(tiny(parametrization=rules | {"input_multiplier": 3.0, "output_multiplier": 5.0}))
    write_folder(tmp_path / "run", config)
    again = build_model(load_config(tmp_path / "run" / "config.yaml"))
    assert again.rules == build_model(config).rules
    assert again.rules.input_multiplier == 3.0
    assert (again.rules.output_multiplier, again.rules.residual_multiplier) == (5.0 / 4, 1 / 2)
