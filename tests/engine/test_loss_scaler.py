"""fp16 with a loss scaler, as on old GPUs, tried on a CPU: an overflow leaves a step out, a stop changes nothing."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt import checkpoint, describe
from nanogpt.config import Config
from nanogpt.record import read_history
from tests.engine.test_train import assert_equal_states, final_state, losses, run

# Overflows at first; then it may double every three steps.
EAGER = {"init_scale": 2.0**40, "growth_interval": 3}


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Configs that train in fp16 on this CPU, which no one may ask for, with a scaler that moves within a few steps."""
    monkeypatch.setattr("nanogpt.hardware.resolve_precision", lambda name, *_: name)
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, **EAGER))
    return lambda **more: tiny(train={"precision": "fp16", "max_iters": 40}, runtime={"log_interval": 1}, **more)


def scaler_of(folder: Path, step: int) -> dict[str, Any]:
    (file,) = [found for found in checkpoint.listed(folder) if found.step == step]
    return checkpoint.load_file(file.path)["scaler"]


@pytest.mark.parametrize(("kind", "between"), [("adamw", 29), ("muon", 31)])
def test_a_stopped_run_goes_on_with_its_scale(
    fp16: Callable[..., Config], tmp_path: Path, kind: str, between: int
) -> None:
    config = fp16(optimizer={"kind": kind, "learning_rate": 1e-2})
    run(config, tmp_path / "whole")
    for stop_at in (5, between):  # while it falls, and between two doublings
        run(config, tmp_path / "parts", stop_at=stop_at)
    run(config, tmp_path / "parts")
    assert losses(tmp_path / "parts", attempt=3) == losses(tmp_path / "whole")
    one, other = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
    assert_equal_states(one, other)
    assert one["scaler"] == other["scaler"]
    assert scaler_of(tmp_path / "parts", 5)["scale"] == EAGER["init_scale"] / 2**5, "every step overflowed"
    assert scaler_of(tmp_path / "parts", between)["_growth_tracker"] > 0
    assert 1 < one["scaler"]["scale"] < EAGER["init_scale"] / 2**5


def test_steps_that_overflow_are_left_out_and_the_others_train(fp16: Callable[..., Config], tmp_path: Path) -> None:
    result = run(fp16(optimizer={"learning_rate": 1e-2}), tmp_path / "run")
    lines = read_history(tmp_path / "run" / "attempts" / "1" / "history.jsonl")
    overflowed = [line["step"] for line in lines if line["grad_norm"] is None]
    assert overflowed[:5] == [1, 2, 3, 4, 5]
    assert len(overflowed) < 35
    assert result.progress.val_loss < lines[0]["train_loss"] - 0.1
    assert describe.resolve(fp16()).train.precision == "fp16"
