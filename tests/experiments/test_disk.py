"""A disk that is full or read-only, and launchers that cannot start: one clear report, and nothing half-written."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from experiments import engine, room
from experiments.__main__ import main
from experiments.launchers import Job
from experiments.launchers.settings import check_launcher
from experiments.lock import resolve, write_lock
from experiments.outcomes import Ended, Exit, classify
from experiments.policy import Try, judge, study_stop
from experiments.runner import StudyRun, prepare
from experiments.store import StudyFolder
from experiments.study import Study
from experiments.supervise import Supervise
from experiments.worker import Setup, Worker
from nanogpt.config import UserError, free_space, is_disk_full, naming, os_problem

pytestmark = pytest.mark.usefixtures("fake_engine")
FULL = 109  # the seed of a run that meets a full disk
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(monkeypatch):
    """Set how many bytes are free."""

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(3 * 10**6, 3 * 10**6 - free, free))

    return leave


@pytest.fixture
def tiny(write_study, tmp_path) -> StudyFolder:
    """A locked study of which one run meets a full disk."""
    path = tmp_path / "results" / "tiny"
    path.mkdir(parents=True)
    write_lock(path, resolve(Study.load(write_study(f"{{seeds: [{FULL}, 1, 2]}}", "supervise: {backoff: 0}"))))
    return StudyFolder(path)


def states(study: StudyFolder) -> dict[int, tuple[str, str, int]]:
    found = study.states()
    return {
        run.config["seed"]: (found[run.id].status, found[run.id].kind, found[run.id].generation) for run in study.runs()
    }


def test_a_full_disk_is_named_with_its_path_its_space_and_what_to_do(tmp_path, disk):
    disk(468_000)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path / "history.jsonl"):
        raise error
    assert os_problem(caught.value).startswith(
        f"{tmp_path}/history.jsonl: No space left on device: 468 kB of 3 MB are free on /"
    )
    assert os_problem(caught.value).endswith("; make room there, then run again")
    assert is_disk_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert os_problem(PermissionError(errno.EACCES, "Permission denied", "x")) == "x: Permission denied"
    assert os_problem(TimeoutError()) == "TimeoutError"
    assert free_space(tmp_path / "not" / "there").startswith("468 kB of 3 MB are free on /")


@pytest.mark.parametrize(
    ("status", "log", "free", "kind"),
    [
        (1, ["step 1", "nanogpt: /a/history.jsonl: No space left on device: 0 B"], None, "disk-full"),
        (1, ["OSError: [Errno 122] Disk quota exceeded"], 10**9, "disk-full"),
        (1, ["step 1"], 4096, "disk-full"),  # not even the log took another line
        (1, ["step 1"], 10**9, "error"),
        (-11, ["step 1"], 4096, "crashed"),
    ],
)
def test_a_child_that_met_a_full_disk(status, log, free, kind):
    assert classify(Exit(status, free_bytes=free), None, log).kind == kind


def test_a_full_disk_is_not_tried_again_by_itself_and_uses_no_retries():
    full = Try(Ended("failed", {"class": "DiskFull", "kind": "disk-full", "signature": "a"}), None)
    other = Try(Ended("failed", {"class": "RuntimeError", "kind": "error", "signature": "b"}), None)
    assert judge([full], Supervise(), {}).retry is None
    assert judge([full, full, other], Supervise(retries=1), {}).retry is not None
    each = {name: ("disk-full", name) for name in "abc"}
    assert "3 runs failed in the same way" in study_stop(each, Supervise())[0]


def test_the_others_go_on_as_far_as_there_is_room(tiny, disk):
    disk(10**6)
    Worker(StudyFolder(tiny.path), Setup(slots=1)).work()
    assert states(tiny)[FULL] == ("failed", "disk-full", 1)
    assert [states(tiny)[seed][0] for seed in (1, 2)] == ["missing", "missing"]
    disk(10**8)
    Worker(StudyFolder(tiny.path), Setup(slots=1)).work()
    assert states(tiny)[FULL] == ("failed", "disk-full", 1)  # only `run` takes it up again
    assert [states(tiny)[seed][0] for seed in (1, 2)] == ["completed", "completed"]


def test_run_says_once_that_the_disk_is_full_and_a_later_run_goes_on(tiny, disk, capsys, monkeypatch):
    disk(10**6)
    arguments = [str(tiny.path), "--no-report", "--jobs", "1"]
    assert main(["run", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("the disk is full") == 1
    assert "1 MB of 3 MB are free on /" in error
    assert ": disk-full: DiskFull: " in error
    assert "retry" not in error
    assert "Traceback" not in error
    assert main(["status", str(tiny.path), "--why"]) == 0
    assert "on `run`: start attempt 2, if there is room on the disk by then" in capsys.readouterr().out
    monkeypatch.setenv("FAKE_WELL_BEHAVED", "1")
    disk(10**9)
    assert main(["run", *arguments]) == 0
    assert {state[0] for state in states(tiny).values()} == {"completed"}
    assert states(tiny)[FULL][2] == 2


def test_a_disk_without_room_for_a_claim_is_told_too(tiny, disk, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tiny.path))

    monkeypatch.setattr("experiments.worker.claim", refuse)
    disk(0)
    assert Worker(StudyFolder(tiny.path), Setup(slots=1)).work() == 1
    text = room.disk_text(tiny, tiny.states())
    assert "0 B of 3 MB are free" in text
    assert "0 runs failed for it, 3 more to finish" in text
    disk(10**9)
    assert room.disk_text(tiny, tiny.states()) == ""


def test_a_forked_child_never_goes_on_as_a_worker(tmp_path, monkeypatch):
    """Were an error to leave the child's code, a second worker would be at work under the same leases."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine, "_in_child", fail)
    pid = engine.fork_training([], tmp_path / "log.txt", ())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == engine.FAILED


def test_a_read_only_file_system_is_called_so_and_can_be_planned_on(write_study, tmp_path, capsys, monkeypatch):
    class Mount:
        f_flag = os.ST_RDONLY

    results = tmp_path / "results"
    results.mkdir()
    study = write_study()
    monkeypatch.setattr(os, "statvfs", lambda _: Mount())
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["plan", str(study), "--out", str(results)]) == 0
    capsys.readouterr()
    assert main(["run", str(study), "--out", str(results)]) == 2
    assert capsys.readouterr().err == (f"{results}/tiny: cannot be written: {results} is on a read-only file system\n")
    assert not list(results.iterdir())


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refusing(monkeypatch, tmp_path) -> None:
    """An sbatch that is there and takes nothing."""
    home = tmp_path / "bin"
    home.mkdir()
    for name, text in {"sbatch": "echo 'sbatch: error: Invalid qos' >&2; exit 1", "scontrol": "true"}.items():
        (home / name).write_text(f"#!/bin/sh\n{text}\n")
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")


@pytest.mark.parametrize("launcher", ["no slurm", "slurm refuses", "no ray", "a slot without a GPU"])
@pytest.mark.parametrize("known", [False, True])
def test_a_launcher_that_cannot_start_leaves_the_disk_as_it_was(
    write_study, tmp_path, monkeypatch, capsys, launcher, known
):
    out = tmp_path / "out"
    if known:
        assert main(["run", str(write_study()), "--out", str(out), "--no-report"]) == 0
    path = write_study("{grid: {n_layer: [1, 2, 3]}}")
    before = content(out)
    capsys.readouterr()
    if launcher == "slurm refuses":
        refusing(monkeypatch, tmp_path)
    else:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr("experiments.launchers.raycluster.ray_version", lambda: None)
    if launcher == "a slot without a GPU":
        settings = check_launcher("local")
        study = prepare(Study.load(path, ["runtime.nproc=2"]), out / "tiny")
        monkeypatch.setattr("experiments.launchers.slots.uses_gpu", lambda _: True)
        monkeypatch.setattr("experiments.launchers.slots.visible_gpus", lambda: ["0"])
        with pytest.raises(UserError, match="one run wants more GPUs than there are"):
            StudyRun(study, Job(settings)).start()
    else:
        kind = "ray" if "ray" in launcher else "slurm"
        assert main(["run", str(path), "--out", str(out), "--launcher", kind]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"launcher: {kind}: ")
        assert error.count("\n") == 1
    assert content(out) == before


def test_a_retry_that_cannot_start_marks_nothing(study, monkeypatch, capsys):
    assert main(["run", str(study.path), "--no-report"]) == 1
    before = content(study.path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["retry", str(study.path), "--failed", "--launcher", "slurm"]) == 2
    assert content(study.path) == before
    assert main(["run", str(study.path), "--retry-failed", "--launcher", "slurm"]) == 2
    assert content(study.path) == before
