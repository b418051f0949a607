"""How children start: forked or cold, each with its GPUs, several processes under torchrun or not at all."""

import subprocess
import sys

import pytest
from conftest import ROOT

from experiments.__main__ import main
from experiments.devices import GpuPool, visible_gpus
from experiments.engine import train_command
from experiments.launchers import Job
from experiments.launchers.settings import chosen_launcher
from experiments.launchers.slots import sized
from experiments.lock import resolve, write_lock
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")


def by_seed(study: StudyFolder) -> dict[int, str]:
    states = study.states()
    return {each.config["seed"]: states[each.id].status for each in study.runs()}


def of(study: StudyFolder, seed: int):
    return next(each for each in study.runs() if each.config["seed"] == seed)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_cold_start_trains_as_a_fork_does(study, slots):
    command = [sys.executable, "-m", "experiments", "worker", str(study.path), "--isolation", "process"]
    done = subprocess.run([*command, "--slots", str(slots)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert by_seed(study) == {1: "completed", 100: "failed", 102: "diverged", 103: "failed"}
    assert "with 1 threads: train" in (study.folder(of(study, 1)) / "attempts" / "1" / "log.txt").read_text()


def test_gpus_are_shared_out(tmp_path):
    pool = GpuPool(["0", "1", "GPU-x"], per_run=1, slots_per_gpu=2)
    taken = [pool.take() for _ in range(6)]
    assert taken == [["0"], ["1"], ["GPU-x"]] * 2
    assert not pool.has_room
    pool.give_back(["1"])
    assert pool.take() == ["1"]
    assert GpuPool(["0", "1", "2", "3"], per_run=2).take() == ["0", "1"]
    assert GpuPool([]).take() is None
    with pytest.raises(UserError, match="a run wants 2 GPUs, and there are 1"):
        GpuPool(["0"], per_run=2)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5"}) == ["3", "5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    (tmp_path / "0000:01").mkdir()
    assert visible_gpus({}, tmp_path) == ["0"]


def test_each_child_sees_its_own_gpus(write_study, tmp_path, monkeypatch):
    sweep = "{points: [{seed: 1, device: cuda}, {seed: 2, device: cuda}, {seed: 3, device: cpu}]}"
    study = StudyFolder(tmp_path)
    write_lock(tmp_path, resolve(Study.load(write_study(sweep))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    command = [sys.executable, "-m", "experiments", "worker", str(study.path), "--slots", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert {line.rpartition(", GPU ")[2] for line in done.stdout.splitlines() if ", GPU " in line} == {"4", "5"}
    study.folders()
    logs = [study.folder(of(study, seed)) / "attempts" / "1" / "log.txt" for seed in (1, 2, 3)]
    assert sorted(log.read_text().rpartition(" on GPU ")[2].strip() for log in logs) == ["4", "4,5", "5"]


def test_several_processes_are_the_engines_affair_and_torchruns_over_nodes(monkeypatch):
    assert train_command(["train", "x"], 2)[1:] == ["-m", "fake_engine", "train", "x", "--nproc", "2"]
    monkeypatch.setenv("NANOGPT_TORCHRUN", "/shared/torchrun.sh")
    assert train_command(["train", "x"], 2) == ["/shared/torchrun.sh", "-m", "fake_engine", "train", "x"]


def test_a_study_says_how_many_processes_train_a_run_in_one_place(write_study, tmp_path, capsys):
    """launcher.nproc, runtime.nproc and --nproc are one thing; the job leaves room for it."""

    def locked(more: str = "", *settings: str) -> Study:
        return resolve(Study.load(write_study("{seeds: [1, 2]}", more), settings))

    assert {run.nproc for run in locked().runs} == {1}
    for lock in (
        locked("launcher: {kind: local, nproc: 2}"),
        locked("config: {runtime: {nproc: 2}}"),
        locked("launcher: slurm", "runtime.nproc=2"),
        locked("launcher: {kind: local, nproc: 4}", "runtime.nproc=2"),
    ):
        assert {run.nproc for run in lock.runs} == {2}
        write_lock(tmp_path, lock)
        job = sized(Job(chosen_launcher(lock.launcher)), StudyFolder(tmp_path))
        assert job.settings.nproc == 2
    assert {run.id for run in locked().runs} == {run.id for run in lock.runs}, "no part of the identity"
    write_lock(tmp_path, locked("launcher: {kind: slurm, gpus: 1}", "runtime.nproc=2"))
    with pytest.raises(UserError, match=r"gpus 1 and nproc 2"):
        sized(Job(chosen_launcher({"kind": "slurm", "gpus": 1})), StudyFolder(tmp_path))


def test_the_command_lines_nproc_reaches_the_children(write_study, tmp_path):
    study, out = write_study("{seeds: [1]}"), tmp_path / "results"
    assert main(["run", str(study), "--out", str(out), "--no-report", "--nproc", "2"]) == 0
    (log,) = out.glob("tiny/*/attempts/1/log.txt")
    assert "in 2 processes" in log.read_text()
