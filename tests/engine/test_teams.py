"""Several processes train what one trains: losses, schedules, evaluation, checkpoints; a rank that dies ends the run.

The tests marked slow start processes that import torch: 12 s to 60 s each, 4 minutes in all on 2 idle cores.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from nanogpt.__main__ import main
from nanogpt.captain import _obituary
from nanogpt.config import Config, UserError, run_id
from nanogpt.configfile import dump_yaml
from nanogpt.data.stream import Batch
from nanogpt.describe import describe, estimate_memory, resolve
from nanogpt.model.ffn import FFNS
from nanogpt.model.trunks import TRUNKS
from nanogpt.record import read_record
from nanogpt.runfolder import write_folder
from nanogpt.team import CAPTAIN_VARIABLE, PeersLostError, Team, leave_to_captain

SCRIPT = Path(__file__).with_name("many_runs.py")
ROOT = SCRIPT.parents[2]
STEPS = 12
BASE: dict[str, Any] = {
    "model": {"n_head": 2, "n_embd": 16, "block_size": 16},
    "data": {"corpus": {"kind": "zipf_mixture"}},
    "train": {"batch_size": 8, "max_iters": STEPS, "precision": "fp32", "eval_interval": 6, "eval_tokens": 16 * 21},
    "optimizer": {"learning_rate": 3e-3},
    "runtime": {"device": "cpu", "threads": 1, "micro_batch_size": 2, "log_interval": 1},
}
MODELS: dict[str, dict[str, Any]] = {
    f"{trunk}-{ffn}": {"trunk": trunk, "ffn": ffn} | ({"n_layer": 2} if trunk in ("stack", "shared") else {})
    for trunk, ffn in itertools.product(TRUNKS, FFNS)
}
MUON = {
    "muon fp32": {"optimizer": {"kind": "muon", "normuon": 0.9, "ns_precision": "fp32"}},
    "muon bf16": {"optimizer": {"kind": "muon"}},
}
METHODS = {
    "alone": {},
    "ddp": {"nproc": 2, "data_parallel": "ddp"},
    "fsdp2": {"nproc": 2, "data_parallel": "fsdp2"},
}


def config(sections: dict[str, Any], runtime: dict[str, Any]) -> Config:
    tree = {section: dict(values) for section, values in BASE.items()}
    for section, values in {**sections, "runtime": runtime}.items():
        tree[section] = values if "kind" in values else tree.get(section, {}) | values
    return Config.model_validate(tree)


def start(folders: list[Path], nproc: int) -> None:
    """Train all folders, by ranks of torchrun or by one process."""
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"] if nproc > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *ranks, str(SCRIPT), *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[:6000]


def history(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "attempts" / "1" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every model and optimizer under every method: one start of processes for each number of them."""
    root, folders = tmp_path_factory.mktemp("teams"), {}
    cases = {name: {"model": model} for name, model in MODELS.items()}
    cases |= {name: {"model": {"n_layer": 2}, **sections} for name, sections in MUON.items()}
    for (case, sections), (method, runtime) in itertools.product(cases.items(), METHODS.items()):
        folder = folders[case, method] = root / f"{case.replace(' ', '_')}-{method}"
        write_folder(folder, resolve(config(sections, runtime)))
    start([folder for (_, method), folder in folders.items() if method == "alone"], 1)
    start([folder for (_, method), folder in folders.items() if method != "alone"], 2)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", [*MODELS, *MUON])
def test_two_processes_train_what_one_trains(trained: dict[tuple[str, str], Path], case: str, method: str) -> None:
    alone, team = history(trained[case, "alone"]), history(trained[case, method])
    tolerance = 1e-3 if case == "muon bf16" else 1e-5
    assert len(alone) == len(team) == STEPS
    assert alone[0]["train_loss"] > alone[-1]["train_loss"] + 0.01, "nothing was learnt"
    for one, two in zip(alone, team, strict=True):
        for key in ("train_loss", "val_loss"):
            if key in one:
                assert two[key] == pytest.approx(one[key], abs=tolerance), (case, one["step"], key)
        for key in ("step", "tokens", "flops", "learning_rate"):
            assert two[key] == one[key]
    record = read_record(trained[case, method] / "attempts" / "1" / "outcome.json")
    assert record.environment["nproc"] == 2
    assert record.environment["data_parallel"] == method
    assert record.val_loss_stderr == pytest.approx(
        read_record(trained[case, "alone"] / "attempts" / "1" / "outcome.json").val_loss_stderr, rel=1e-3
    )


@pytest.fixture
def run_config(tmp_path: Path) -> Path:
    tree = config({"model": {"n_layer": 2}}, {}).model_dump(mode="json")
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(tree))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("ddp", 2, 1), ("fsdp2", 2, 3), ("ddp", 1, 2)], ids=str)
def test_a_run_goes_on_with_another_number_of_processes(
    run_config: Path, tmp_path: Path, methods: tuple[str, int, int]
) -> None:
    """Stopped by SIGTERM under one number, resumed under another: the losses are those of a run never stopped."""
    method, first, second = methods
    settings = ["--max_iters=60", "--batch_size=12", f"--data_parallel={method}", "--optimizer=muon"]
    settings += ["--ns_precision=fp32"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(run_config), *settings, f"--out_dir={whole}"]) == 0
    command = [sys.executable, "-m", "nanogpt", "train"]
    process = subprocess.Popen(
        [*command, str(run_config), *settings, "--interval_seconds=0", f"--out_dir={parts}", "--nproc", str(first)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(parts, 5, process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75, errors[-2000:]
    done = subprocess.run(
        [*command, str(parts), "--nproc", str(second)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on from step" in done.stdout
    expected, found = (read_record(folder / "metrics.json") for folder in (whole, parts))
    assert found.attempts == 2
    assert found.val_loss == pytest.approx(expected.val_loss, abs=1e-5)
    assert (found.steps, found.tokens, found.flops, found.id) == (60, expected.tokens, expected.flops, expected.id)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], seconds: float = 180) -> None:
    """Until a checkpoint of that step is there."""
    deadline = time.monotonic() + seconds
    while not any(int(path.stem.rpartition("-")[2]) >= step for path in folder.glob("attempts/*/checkpoint-*.pt")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.1)


def ranks_of(pid: int) -> list[int]:
    """The processes that a captain started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"--attempt" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.parametrize("method", ["ddp", "fsdp2"])
def test_a_rank_that_is_killed_ends_the_run_which_says_so_and_goes_on(
    run_config: Path, tmp_path: Path, method: str
) -> None:
    folder, command = tmp_path / "run", [sys.executable, "-m", "nanogpt", "train"]
    settings = ["--max_iters=100000", f"--data_parallel={method}", "--interval_seconds=0", f"--out_dir={folder}"]
    process = subprocess.Popen(
        [*command, str(run_config), *settings, "--nproc", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(folder, 5, process)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    victim = next(rank for rank in ranks if b"RANK=1\0" in Path(f"/proc/{rank}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in errors
    outcome = read_record(folder / "attempts" / "1" / "outcome.json")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error["message"].startswith("rank 1 was killed by SIGKILL")
    assert errors.count("rank 0: lost the run's other processes") <= 1, "rank 0 may be stopped before it notices"
    assert "Traceback" not in errors
    assert "torch/distributed/elastic" not in errors
    last = history(folder)[-1]
    assert [outcome.steps, outcome.tokens, outcome.flops] == [last["step"], last["tokens"], last["flops"]]
    assert outcome.train_loss == last["train_loss"]
    assert outcome.steps >= 5
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks), "a rank was left behind"
    process = subprocess.Popen(
        [*command, str(folder), "--nproc", "2"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    reached = max(int(path.stem.rpartition("-")[2]) for path in folder.glob("attempts/1/checkpoint-*.pt"))
    wait_for_step(folder, reached + 5, process)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-2000:]
    assert f"going on from step {reached:,}" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_ranks_whose_captain_is_killed_save_and_go(run_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ["--max_iters=100000", "--interval_seconds=0", f"--out_dir={folder}", "--nproc", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogpt", "train", str(run_config), *settings],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_step(folder, 5, process)
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "a rank was left behind"
        time.sleep(0.1)
    assert read_record(folder / "attempts" / "1" / "outcome.json").status == "interrupted"


RESET = "gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer"


def test_a_rank_that_lost_the_others_leaves_it_to_its_captain_to_say_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def tell(problem: Exception) -> None:
        try:
            raise problem
        except Exception as error:
            leave_to_captain(error)

    rank = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_ERROR_FILE": f"{tmp_path}/error"}
    tell(RuntimeError(RESET))  # a run of one process has no others
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    tell(RuntimeError(RESET))  # over several nodes nobody else would write an outcome
    monkeypatch.setenv(CAPTAIN_VARIABLE, "1")
    tell(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    tell(ValueError(RESET))
    assert not (tmp_path / "error").exists()
    with pytest.raises(PeersLostError, match=r"^rank 0: lost the run's other processes: gloo"):
        tell(RuntimeError(RESET))
    error = _obituary(0, ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=f"{tmp_path}/error"))
    assert error["message"].startswith("rank 0 ended with exit status 1; ")
    assert error["message"].endswith(f": RuntimeError: {RESET}")
    assert error["traceback_tail"][0].startswith("Traceback")
    none = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=f"{tmp_path}/nowhere")
    assert _obituary(0, none)["message"].endswith("processes were stopped")


def test_each_rank_takes_its_rows_and_all_rows_are_taken() -> None:
    rows = np.arange(12)[:, None]
    parts = [Team(rank, 3).rows_of(Batch(rows, rows + 1)) for rank in range(3)]
    assert np.array_equal(np.concatenate([part.x_BT for part in parts]), rows)
    assert {len(part.y_BT) for part in parts} == {4}


def test_a_team_of_one_sends_nothing() -> None:
    team = Team()
    assert team.leads
    assert team.means([1.5, True]) == [1.5, True]
    assert team.any(True)
    assert not team.any(False)
    assert team.gather(3.0) == [3.0]
    tensor = torch.ones(2)
    assert team.add(tensor) is tensor


@pytest.mark.parametrize(
    ("sections", "runtime", "problem"),
    [
        ({}, {"nproc": 3}, "runtime.nproc=3: the batch of 8 sequences is 4 micro-batches of 2, which 3 processes"),
        ({}, {"nproc": 2, "micro_batch_size": 8}, "is 1 micro-batches of 8, which 2 processes cannot share equally"),
        (
            {"train": {"batch_size": 16}},
            {"nproc": 3, "micro_batch_size": None},
            "runtime.nproc=3: a batch of 16 sequences cannot be shared equally; allowed: 1, 2, 4, 8, 16 ",
        ),
        ({}, {"nproc": 9, "micro_batch_size": None}, "cannot be shared equally; allowed: 1, 2, 4, 8 "),
        ({}, {"nproc": 2, "noise_scale_interval": 5}, "runtime.noise_scale_interval: measured in one process only"),
        ({}, {"nproc": 2, "data_parallel": "fsdp2", "probe_interval": 5}, "shards cannot be probed"),
        ({"train": {"precision": "fp16"}}, {"nproc": 2, "data_parallel": "fsdp2"}, "fp16 does not go with"),
        ({}, {"nproc": 0}, "greater than 0"),
        ({}, {"data_parallel": "zero3"}, "'ddp' or 'fsdp2'"),
    ],
)
def test_what_processes_cannot_do_is_refused(sections: dict[str, Any], runtime: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(sections, runtime)


def test_processes_are_no_part_of_the_identity_unless_dropout_makes_the_micro_batch_one() -> None:
    one, two = (resolve(config({}, {"nproc": nproc})) for nproc in (1, 2))
    assert run_id(one) == run_id(two)
    dropout = {"model": {"dropout": 0.1}}
    one, two = (resolve(config(dropout, {"nproc": nproc, "micro_batch_size": None})) for nproc in (1, 2))
    assert (one.micro_batch_size, two.micro_batch_size) == (8, 4)
    assert run_id(one) != run_id(two)


def test_shards_divide_the_state_in_memory() -> None:
    ddp, fsdp = (estimate_memory(resolve(config({}, {"nproc": 2, "data_parallel": name}))) for name in ("ddp", "fsdp2"))
    assert fsdp.state == -(-ddp.state // 2)
    assert fsdp.activations == ddp.activations


def test_more_processes_than_gpus_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanogpt.captain import check_devices

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"runtime.nproc: 2 processes want a GPU each; this machine has 1"):
        check_devices("cuda", 2)
    with pytest.raises(UserError, match=r"runtime.device: cuda:1 is one device; with nproc 2 expected cuda or cpu"):
        check_devices("cuda:1", 2)
    check_devices("cpu", 2)
    assert describe(config({}, {"nproc": 2})).config.runtime.nproc == 2
