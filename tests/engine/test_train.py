"""The training loop end to end: what it records, and that a resumed run equals an uninterrupted one to the last bit.

Slow part: about 40 s.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanogpt import checkpoint
from nanogpt.__main__ import main
from nanogpt.config import Config, UserError
from nanogpt.configfile import dump_yaml
from nanogpt.describe import describe
from nanogpt.hardware import enable_fast_float32_matmul
from nanogpt.materials import gather
from nanogpt.model import build_model
from nanogpt.record import attempt_folder, read_history, read_record
from nanogpt.runfolder import next_attempt, write_folder
from nanogpt.stop import StopRequest, SupersededError
from nanogpt.train import train
from tests.covers import cover

Make = Callable[..., Config]
RECURRENT = {"kind": "recurrent", "depth": "poisson_lognormal", "backprop_loops": 2, "state_init": "like_embed"}


def run(config: Config, folder: Path, stop_at: int | None = None, fence: Path | None = None) -> Any:
    """One attempt at a run, stopped after `stop_at` steps when that is given."""
    description = describe(config)
    stop = StopRequest()

    def watch(line: dict[str, Any]) -> None:
        if stop_at is not None and line["step"] >= stop_at:
            stop.ask("test")

    torch.set_num_threads(1)
    enable_fast_float32_matmul()  # as the command line does: runs compared here may come from either
    materials = gather(description, folder)
    write_folder(folder, description.config)
    return train(description, materials, torch.device("cpu"), folder, next_attempt(folder), stop, fence, watch)


def final_state(folder: Path) -> dict[str, Any]:
    loaded = checkpoint.load_latest(folder)
    assert loaded is not None
    return loaded.state


def losses(folder: Path, attempt: int = 1) -> list[tuple[Any, ...]]:
    keys = ("step", "tokens", "flops", "train_loss", "val_loss", "learning_rate", "grad_norm")
    lines = read_history(attempt_folder(folder, attempt) / "history.jsonl")
    return [tuple(line.get(key) for key in keys) for line in lines]


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    for index, slot in one["optimizer"]["state"].items():
        for name, value in slot.items():
            assert torch.equal(value, other["optimizer"]["state"][index][name]), (index, name)
    assert torch.equal(one["rng"], other["rng"])
    timings = {"step_seconds", "wall_seconds", "cpu_seconds"}
    assert {k: v for k, v in one["progress"].items() if k not in timings} == {
        k: v for k, v in other["progress"].items() if k not in timings
    }


def test_loss_falls_and_everything_is_recorded(tiny: Make, tmp_path: Path) -> None:
    result = run(tiny(train={"max_iters": 60, "eval_interval": 20}), tmp_path / "run")
    history = read_history(tmp_path / "run" / "attempts" / "1" / "history.jsonl")
    evaluations = [line for line in history if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [20, 40, 60]
    assert evaluations[-1]["val_loss"] < np.log(32) - 0.3
    assert result.progress.tokens == 60 * 4 * 16
    assert result.val_entropy < evaluations[-1]["val_loss"]
    assert history[-1]["learning_rate"] < history[2]["learning_rate"]


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"model": {"dropout": 0.2}},
    "bf16": {"train": {"precision": "bf16"}},
    "micro": {"runtime": {"micro_batch_size": 2}},
    "constant": {"optimizer": {"grad_clip": 0.0}, "schedule": "constant"},
    "muon": {"optimizer": {"kind": "muon", "learning_rate": 0.05, "normuon": 0.9}},
    "random2d": {"model": {"n_layer": None, "trunk": {"kind": "random2d", "order": "hierarchical"}}},
    "recurrent": {"model": {"n_layer": None, "trunk": RECURRENT}},
}


@pytest.mark.parametrize(("name", "stop_at"), cover({name: name for name in RESUMED}, [2, 4, 6, 10]))
def test_a_stopped_run_goes_on_bit_exactly(tiny: Make, tmp_path: Path, name: str, stop_at: int) -> None:
    config = tiny(**RESUMED[name])
    run(config, tmp_path / "whole")
    first = run(config, tmp_path / "parts", stop_at=stop_at)
    second = run(config, tmp_path / "parts")
    assert (first.status, second.status) == ("interrupted", "completed")
    assert losses(tmp_path / "parts", attempt=2) == losses(tmp_path / "whole")
    assert_equal_states(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_flops_are_those_of_the_steps_as_drawn(tiny: Make, tmp_path: Path) -> None:
    config = tiny(model={"n_layer": None, "trunk": "random2d"}, runtime={"log_interval": 1, "micro_batch_size": 2})
    result = run(config, tmp_path / "run")
    model = build_model(describe(config).config, "meta")
    costs = [model.step_cost(step) for step in range(12)]
    per_step = [each[2] for each in losses(tmp_path / "run")]
    assert per_step == [64 * sum(cost.flops_per_token for cost in costs[: step + 1]) for step in range(12)]
    assert result.progress.flops == per_step[-1] != describe(config).flops
    assert result.progress.applications == sum(cost.applications for cost in costs)


def test_a_checkpoint_from_before_flops_were_summed_goes_on(tiny: Make, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run", stop_at=6)
    file = checkpoint.listed(tmp_path / "run")[0]
    state = torch.load(file.path, weights_only=True)
    del state["progress"]["flops"], state["progress"]["applications"]
    checkpoint.save(tmp_path / "run", 1, file.step, {key: value for key, value in state.items() if key != "format"})
    result = run(tiny(), tmp_path / "run")
    assert result.progress.flops == describe(tiny()).flops
    assert result.progress.applications == 12 * 2


def test_the_loss_at_other_depths(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    config = tiny(model={"n_layer": None, "trunk": "recurrent"}, train={"max_iters": 60})
    result = run(config, folder)
    assert main(["eval", str(folder), "--depths", "1,4,8"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[-4] for row in rows] == ["6", "3", "6", "10"]
    recorded = f"{result.progress.val_loss:.4f}"
    assert [row[-2] for row in rows][::2] == [recorded, recorded]
    assert len({row[-2] for row in rows}) == 3
    for depths, message in (
        ("1,0", "eval: --depths: depth 0: expected a number of loops"),
        ("x", "eval: --depths: depth x: expected"),
        ("1,,2", "eval: --depths: an empty depth in '1,,2'"),
        ("", "eval: --depths: an empty depth in ''"),
    ):
        assert main(["eval", str(folder), "--depths", depths]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.out == ""


def test_stopping_at_every_step_changes_nothing(tiny: Make, tmp_path: Path) -> None:
    config = tiny(runtime={"log_interval": 1})
    run(config, tmp_path / "whole")
    for step in range(1, 12):
        run(config, tmp_path / "parts", stop_at=step)
    run(config, tmp_path / "parts")
    assert losses(tmp_path / "parts", attempt=12) == losses(tmp_path / "whole")
    assert_equal_states(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_a_killed_run_goes_on_bit_exactly(tiny: Make, tmp_path: Path) -> None:
    config = tiny(train={"max_iters": 150}, runtime={"checkpoint": {"policy": "last", "interval_seconds": 0}})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "nanogpt", "train", str(path)]
    folder = tmp_path / "killed"
    child = subprocess.Popen([*command, f"--out_dir={folder}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not checkpoint.listed(folder):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert checkpoint.listed(folder), "no checkpoint was written"
    assert not (folder / "metrics.json").exists()
    assert subprocess.run([*command, f"--out_dir={folder}"], stdout=subprocess.DEVNULL).returncode == 0
    run(config, tmp_path / "whole")
    record = read_record(folder / "metrics.json")
    assert record.attempts == 2
    assert record.environment["resumed_from"]
    assert losses(folder, attempt=2) == losses(tmp_path / "whole")
    assert_equal_states(final_state(folder), final_state(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_checkpoints_and_exits_75(tiny: Make, tmp_path: Path, number: signal.Signals) -> None:
    config = tiny(train={"max_iters": 100_000, "eval_interval": None})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config.model_dump(mode="json")))
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-m", "nanogpt", "train", str(path), f"--out_dir={folder}"],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not read_history(attempt_folder(folder, 1) / "history.jsonl"):
        time.sleep(0.01)
    child.send_signal(number)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 75
    assert f"python -m nanogpt train {folder}" in output
    assert read_record(attempt_folder(folder, 1) / "outcome.json").status == "interrupted"
    assert checkpoint.load_latest(folder) is not None
    assert not (folder / "metrics.json").exists()


def test_the_parents_pipe_stops_an_orphan(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_folder(folder, describe(tiny(train={"max_iters": 100_000, "eval_interval": None})).config)
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "nanogpt", "train", str(folder), "--attempt", "1", "--fence", str(folder / "lease.2"),
         "--parent_fd", str(reader)], pass_fds=[reader], stdout=subprocess.DEVNULL)  # fmt: skip
    os.close(reader)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not read_history(attempt_folder(folder, 1) / "history.jsonl"):
        time.sleep(0.01)
    os.close(writer)
    assert child.wait(timeout=120) == 75
    assert checkpoint.load_latest(folder) is not None


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_training(tiny: Make, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny(train={"max_iters": 60}, runtime={"log_interval": 1}).model_dump(mode="json")))
    command = [sys.executable, "-m", "nanogpt", "train", str(path), f"--out_dir={tmp_path / 'run'}"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait(timeout=120) in (0, 1)
    assert read_record(tmp_path / "run" / "metrics.json").status == "completed"


def test_a_superseded_attempt_leaves_nothing(tiny: Make, tmp_path: Path) -> None:
    fence = tmp_path / "lease.2"
    fence.touch()
    with pytest.raises(SupersededError):
        run(tiny(), tmp_path / "run", fence=fence)
    assert not checkpoint.listed(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_run_has_the_eager_runs_losses(tiny: Make, tmp_path: Path) -> None:
    torch.compiler.reset()
    run(tiny(), tmp_path / "eager")
    run(tiny(runtime={"compile": True}), tmp_path / "compiled")
    for one, other in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
        assert [x for x in one if x is not None] == pytest.approx([x for x in other if x is not None], abs=1e-4)


def test_divergence_is_a_result(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(optimizer={"learning_rate": 1e4, "grad_clip": 0.0, "weight_decay": 0.0}, train={"max_iters": 2000})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config.model_dump(mode="json")))
    assert main(["train", str(path), f"--out_dir={tmp_path / 'run'}"]) == 0
    record = read_record(tmp_path / "run" / "metrics.json")
    assert record.status == "diverged"
    assert record.val_loss is None
    assert record.diverged_at_step == record.steps
    assert "NaN" not in (tmp_path / "run" / "metrics.json").read_text()
    assert "diverged at step" in capsys.readouterr().out


def test_the_record_of_a_failure_says_how_far_the_run_came(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(dump_yaml(tiny(runtime={"log_interval": 1}).model_dump(mode="json")))

    def after_three(self: object, line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise RuntimeError("something broke")

    monkeypatch.setattr("nanogpt.reporting.Narrator.line", after_three)
    assert main(["train", str(path), f"--out_dir={folder}"]) == 1
    record = read_record(folder / "attempts" / "1" / "outcome.json")
    assert (record.status, record.steps) == ("failed", 3)
    last = json.loads((folder / "attempts" / "1" / "history.jsonl").read_text().splitlines()[-1])
    assert [record.tokens, record.flops, record.train_loss] == [last["tokens"], last["flops"], last["train_loss"]]


def test_best_is_a_true_minimum(tiny: Make, tmp_path: Path) -> None:
    # Trained far too hot at the end, the validation loss rises again.
    config = tiny(
        optimizer={"learning_rate": 0.03, "weight_decay": 0.0},
        schedule="constant",
        data={"corpus": {"kind": "zipf_mixture", "alphabet_size": 32, "train_tokens": 4096, "val_tokens": 8192}},
        model={"n_embd": 32, "n_layer": 2, "n_head": 2, "block_size": 16},
        train={"max_iters": 400, "eval_interval": 10},
        runtime={"checkpoint": "best"},
    )
    run(config, tmp_path / "run")
    history = read_history(attempt_folder(tmp_path / "run", 1) / "history.jsonl")
    evaluations = {line["step"]: line["val_loss"] for line in history if "val_loss" in line}
    best_step = min(evaluations, key=lambda step: evaluations[step])
    state = final_state(tmp_path / "run")
    assert state["progress"]["best_step"] == best_step < 400
    assert state["progress"]["best_val_loss"] == evaluations[best_step]
    assert best_step in {c.step for c in checkpoint.listed(tmp_path / "run")}


def test_muon_trains_and_the_history_shows_its_rate(tiny: Make, tmp_path: Path) -> None:
    muon = {"kind": "muon", "learning_rate": 0.05, "adamw_learning_rate": 1e-2}
    result = run(tiny(optimizer=muon, train={"max_iters": 60, "eval_interval": 20}), tmp_path / "run")
    history = read_history(tmp_path / "run" / "attempts" / "1" / "history.jsonl")
    assert result.progress.val_loss < np.log(32) - 0.3
    assert max(line["learning_rate"] for line in history) == pytest.approx(0.05, rel=0.01)
    groups = final_state(tmp_path / "run")["optimizer"]["param_groups"]
    assert {group["half"] for group in groups} == {"muon", "adamw"}
    shares = [group["lr"] / group["lr_multiplier"] for group in groups]
    assert shares == pytest.approx([shares[0]] * len(groups), rel=1e-12), "the schedule scales both halves alike"


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_batches_do_not_depend_on_the_cut(tiny: Make, tmp_path: Path, micro: int) -> None:
    run(tiny(), tmp_path / "whole")
    run(tiny(runtime={"micro_batch_size": micro}), tmp_path / "cut")
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], abs=2e-5)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("never", []), ("last", [12]), ("best", [12]), ({"policy": "every_n", "every": 5}, [12, 10, 5])],
    ids=["never", "last", "best", "every_n"],
)
def test_checkpoint_policies(tiny: Make, tmp_path: Path, policy: Any, kept: list[int]) -> None:
    run(tiny(runtime={"checkpoint": policy}), tmp_path / "run")
    assert [c.step for c in checkpoint.listed(tmp_path / "run")][: len(kept)] == kept
    assert len(checkpoint.listed(tmp_path / "run")) <= max(len(kept), checkpoint.KEPT)


def test_a_wsd_branch_equals_a_run_from_scratch(tiny: Make, tmp_path: Path) -> None:
    wsd = {"kind": "wsd", "warmup_iters": 2, "cooldown": 0.25}
    every = {"checkpoint": {"policy": "every_n", "every": 2}}
    run(tiny(schedule=wsd, train={"max_iters": 24}, runtime=every), tmp_path / "trunk")
    short = {"max_iters": 12, "eval_interval": 4}
    run(tiny(schedule=wsd, train=short), tmp_path / "scratch")
    branched = run(
        tiny(schedule=wsd, train=short, runtime={"branch_from": str(tmp_path / "trunk")}), tmp_path / "branch"
    )
    assert branched.resumed_from is not None
    assert "checkpoint-00000008" in branched.resumed_from
    assert losses(tmp_path / "branch") == losses(tmp_path / "scratch")
    assert_equal_states(final_state(tmp_path / "branch"), final_state(tmp_path / "scratch"))


def test_no_trunk_is_shared_where_the_decay_follows_the_horizon(tiny: Make, tmp_path: Path) -> None:
    wsd = {"kind": "wsd", "warmup_iters": 2, "cooldown": 0.25}
    shared: dict[str, Any] = {"schedule": wsd, "parametrization": {"weight_decay_rule": "tau_epoch"}}
    every = {"checkpoint": {"policy": "every_n", "every": 2}}
    run(tiny(**shared, train={"max_iters": 24}, runtime=every), tmp_path / "trunk")
    with pytest.raises(UserError, match="tau_epoch"):
        run(tiny(**shared, runtime={"branch_from": str(tmp_path / "trunk")}), tmp_path / "branch")


def test_a_finished_run_is_not_trained_again(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tiny().model_dump(mode="json")))
    out = f"--out_dir={tmp_path / 'run'}"
    assert main(["train", str(path), out]) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert main(["train", str(path), out]) == 0
    assert "already finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["schema_version"] == 1
    assert main(["train", str(tmp_path / "run"), "--reset"]) == 2  # asks first, and there is no terminal to ask
    assert "--yes" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "run"), "--reset", "--yes"]) == 0
    assert read_record(tmp_path / "run" / "metrics.json").attempts == 1


def test_checkpoints_at_branch_points_stay_and_an_offered_trunk_is_taken_or_left(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wsd = {"kind": "wsd", "warmup_iters": 2, "cooldown": 0.25}
    write_folder(tmp_path / "trunk", describe(tiny(schedule=wsd, train={"max_iters": 24})).config)
    command = ["--attempt", "1", "--fence", str(tmp_path / "no")]
    assert main(["train", str(tmp_path / "trunk"), *command, "--branch_points", "6,8"]) == 0
    assert [found.step for found in checkpoint.listed(tmp_path / "trunk")] == [24, 8, 6]
    for name, offer in {"scratch": [], "branch": ["trunk"], "refused": ["nowhere"]}.items():
        write_folder(tmp_path / name, describe(tiny(schedule=wsd, train={"max_iters": 12})).config)
        trunk = ["--branch_folder", str(tmp_path / offer[0])] if offer else []
        assert main(["train", str(tmp_path / name), *command, *trunk]) == 0
        assert losses(tmp_path / name) == losses(tmp_path / "scratch")
    assert capsys.readouterr().out.count("starting from step 0") == 1
    names = ("scratch", "branch", "refused")
    told = [read_record(attempt_folder(tmp_path / name, 1) / "outcome.json") for name in names]
    assert [record.environment.get("branched_from", {}).get("step") for record in told] == [None, 8, None]
    assert len({(record.flops, record.val_loss) for record in told}) == 1
