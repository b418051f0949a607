"""The fault matrix: whatever befalls one run, it ends in its class with one clear line, and the others complete."""

import dataclasses
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_until

from experiments import attempt, children, lease, worker
from experiments.__main__ import main
from experiments.lease import Claimant
from experiments.lock import resolve, write_lock
from experiments.outcomes import Exit, classify, oom_kills, signature
from experiments.policy import _with_less_memory
from experiments.store import RunState, StudyFolder
from experiments.study import Study
from experiments.worker import Setup, Worker
from nanogpt.config import Config
from nanogpt.configfile import load_config
from nanogpt.record import read_record

pytestmark = pytest.mark.usefixtures("fake_engine")
GOOD = 1  # the seed of a run that nothing befalls
Work = Callable[..., dict[int, RunState]]


@pytest.fixture
def study(write_study, tmp_path, monkeypatch) -> Callable[..., StudyFolder]:
    """A locked study whose seeds say what befalls each run."""
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(worker, "LOOK_AGAIN_SECONDS", 0.02)

    def make(*seeds: int, supervise: str = "{backoff: 0}", config: str = "{}") -> StudyFolder:
        path = tmp_path / "results" / "tiny"
        path.mkdir(parents=True)
        more = f"supervise: {supervise}\nconfig: {config}"
        write_lock(path, resolve(Study.load(write_study(f"{{seeds: {list(seeds)}}}", more))))
        return StudyFolder(path)

    return make


def work(study: StudyFolder, **setup) -> dict[int, RunState]:
    """A worker in this process until nothing is left; the states by seed."""
    claimant = setup.pop("claimant", None) or Claimant()
    Worker(StudyFolder(study.path), Setup(slots=2, **setup), claimant).work()
    return states(study)


def states(study: StudyFolder) -> dict[int, RunState]:
    found = study.states()
    return {run.config["seed"]: found[run.id] for run in study.lock.runs}


def folder(study: StudyFolder, seed: int) -> Path:
    study.folders()
    return study.folder(next(run for run in study.lock.runs if run.config["seed"] == seed))


def told(capsys, seed: int) -> list[str]:
    """The lines of the worker's log about a run; none of them, nor anything on stderr, is a traceback."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return [line for line in captured.out.splitlines() if f"seed={seed}." in line]


def test_a_disk_that_is_full_in_training(study, capsys):
    tiny = study(GOOD, 109)
    found = work(tiny)
    assert (found[109].status, found[109].kind) == ("failed", "disk-full")
    assert found[109].detail.endswith("No space left on device")
    assert found[GOOD].status == "completed"
    assert len(told(capsys, 109)) == 2  # started and ended, once


@pytest.mark.parametrize("lasting", [False, True])
def test_a_disk_that_is_full_while_settling(study, capsys, monkeypatch, lasting):
    tiny, failures = study(GOOD, 102), []

    def settle(one, ending, supervise):
        if one.run.config["seed"] == 102 and (lasting or not failures):
            failures.append(one)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one.folder))
        return attempt.settle(one, ending, supervise)

    monkeypatch.setattr(worker, "settle", settle)
    found = work(tiny)
    assert found[GOOD].status == "completed"
    assert found[102].status == ("interrupted" if lasting else "diverged")
    assert any("which cannot be recorded" in line and "No space left" in line for line in told(capsys, 102))
    if lasting:  # the next worker publishes what is there, and trains nothing
        monkeypatch.setattr(worker, "settle", attempt.settle)
        assert work(tiny)[102].status == "diverged"
        assert not (folder(tiny, 102) / "attempts" / "2").exists()


def test_a_loss_that_is_not_a_number_is_a_result(study):
    found = work(study(GOOD, 102))
    assert (found[102].status, found[GOOD].status) == ("diverged", "completed")


def test_memory_that_runs_out_halves_the_micro_batch(study, capsys):
    tiny = study(GOOD, 106, supervise="{retries: 1}")
    assert work(tiny)[106].status == "completed"
    config = load_config(folder(tiny, 106) / "config.yaml")
    assert (config.train.batch_size, config.micro_batch_size) == (2, 1)
    assert any("oom" in line and "micro-batch 2 -> 1" in line for line in told(capsys, 106))
    assert read_record(folder(tiny, 106) / "attempts" / "1" / "outcome.json").error["kind"] == "oom"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{dropout: 0.1}", "with dropout another micro-batch"),
        ("{ffn: {kind: topk_moe, capacity_factor: 1.25}}", "with ffn.capacity_factor another micro-batch"),
        (
            "{ffn: {kind: topk_moe, balance: aux, aux_scope: micro_batch}}",
            "with ffn.aux_scope=micro_batch another micro-batch",
        ),
        ("{batch_size: 4, micro_batch_size: 4, ffn: {kind: topk_moe, balance: aux}}", ""),
        ("{batch_size: 4, micro_batch_size: 4}", ""),
    ],
)
def test_memory_that_runs_out_where_no_cut_helps(study, capsys, config, reason):
    tiny = study(GOOD, 106, config=config)
    found = work(tiny)
    assert (found[106].status, found[106].kind) == (("failed", "oom") if reason else ("completed", ""))
    assert reason in " ".join(told(capsys, 106))
    assert len(list(folder(tiny, 106).glob("attempts/*"))) == (1 if reason else 3)  # 4, 2, 1


@pytest.mark.parametrize(
    ("batch", "micro", "nproc", "sizes"),
    [(30, 15, 2, [5, 1]), (32, None, 2, [8, 4, 2, 1]), (12, None, 4, [1]), (12, None, 1, [6, 3, 1])],
)
def test_memory_that_runs_out_in_several_processes_cuts_what_each_has(batch, micro, nproc, sizes):
    runtime, found = {"micro_batch_size": micro, "nproc": nproc}, []
    while True:
        config = Config.model_validate({"train": {"batch_size": batch, "max_iters": 1}, "runtime": runtime})
        verdict = _with_less_memory(config.model_dump())
        if verdict.retry is None:
            break
        runtime = {**runtime, "micro_batch_size": verdict.retry.micro_batch_size}
        found.append(verdict.retry.micro_batch_size)
    assert found == sizes


def test_memory_that_the_kernel_takes(tmp_path):
    assert classify(Exit(-signal.SIGKILL, out_of_memory=True), None, []).kind == "oom"
    assert classify(Exit(-signal.SIGKILL), None, []).kind == "lost"
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2


def test_a_run_that_takes_too_long(study, capsys):
    tiny = study(GOOD, 107, supervise="{time_limit: 0.5, retries: 1, backoff: 0}")
    found = work(tiny)
    assert (found[107].status, found[107].kind, found[107].detail) == (
        "failed",
        "timeout",
        "Timeout: ran longer than 0.5 s",
    )
    assert len(list(folder(tiny, 107).glob("attempts/1/checkpoint-*.pt"))) > 1
    assert found[GOOD].status == "completed"
    assert "retries is 1" in told(capsys, 107)[-1]


def test_a_run_that_takes_too_long_and_does_not_listen(study, monkeypatch):
    monkeypatch.setattr(
        "fake_engine._StopRequests", lambda fd: dataclasses.make_dataclass("Deaf", [("asked", bool, False)])()
    )
    monkeypatch.setattr(children.signal, "SIGTERM", signal.SIGWINCH)  # which is ignored
    found = work(study(GOOD, 110, supervise="{time_limit: 0.3, retries: 0}"), grace=0.2)
    assert (found[110].status, found[110].kind) == ("failed", "timeout")


def test_a_poison_run(study, capsys):
    tiny = study(GOOD, 101, supervise="{retries: 5, backoff: 0}")
    found = work(tiny)
    assert (found[101].status, found[101].kind, found[GOOD].status) == ("failed", "crashed", "completed")
    assert "not tried again: the same failure twice" in told(capsys, 101)[-1]
    assert len(list(folder(tiny, 101).glob("attempts/*"))) == 2


def test_an_abort_after_a_good_outcome_is_a_success(study):
    assert work(study(108))[108].status == "completed"


def test_an_end_without_an_outcome_is_a_crash(study):
    assert work(study(104))[104].kind == "crashed"


@pytest.mark.parametrize(("rule", "left"), [("max_failures: 3", 1), ("on_error: stop", 3), ("max_failures: null", 0)])
def test_equal_failures_stop_the_study(study, capsys, rule, left):
    seeds = (100, 111, 112, GOOD)
    tiny = study(*seeds, supervise=f"{{retries: 0, {rule}}}")
    Worker(StudyFolder(tiny.path), Setup(slots=1)).work()
    found = states(tiny)
    assert sum(state.status == "missing" for state in found.values()) == left
    assert len({state.signature for state in found.values() if state.status == "failed"}) == 1
    assert ("no further run is started" in capsys.readouterr().out) == bool(left)


def test_a_folder_that_cannot_be_written(study, capsys):
    tiny = study(GOOD, 102)
    folder(tiny, 102).write_text("a file where a folder should be")
    found = work(tiny)
    assert (found[102].status, found[102].kind, found[GOOD].status) == ("failed", "corrupt", "completed")
    assert "cannot be read: Not a directory" in found[102].detail


def test_a_folder_that_becomes_unwritable(study, capsys, monkeypatch):
    tiny = study(GOOD, 102)
    claim = attempt.claim

    def refuse(study, run, *more):
        if run.config["seed"] == 102:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(study.folder(run)))
        return claim(study, run, *more)

    monkeypatch.setattr(worker, "claim", refuse)
    assert work(tiny)[GOOD].status == "completed"
    (line,) = told(capsys, 102)
    assert line.endswith("left alone: " + f"{folder(tiny, 102)}: Permission denied")


def test_a_folder_that_cannot_be_written_is_told_by_run_and_status(study, capsys, monkeypatch):
    tiny = study(GOOD, 102)
    home = folder(tiny, 102)
    home.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home and access(path, mode))
    monkeypatch.setattr("experiments.launchers.local.Local.start", lambda *_: None)
    for words in (["run", "--no-report"], ["status"]):
        main([words[0], str(tiny.path), *words[1:]])
        told = "".join(capsys.readouterr())
        assert "1 left alone, since their folders cannot be written:\n" in told
        assert told.count(f"{home.name}: no permission for {home}\n") == 1


@pytest.mark.parametrize("name", ["lease.1", "config.yaml", "attempts/1/outcome.json", "attempts/1/history.jsonl"])
def test_truncated_files(study, capsys, name):
    tiny = study(GOOD, 2)
    run = next(run for run in tiny.lock.runs if run.config["seed"] == 2)
    one = attempt.claim(tiny, run, Claimant(), threads=1)
    one.folder.mkdir(parents=True)
    (one.folder / "history.jsonl").write_text('{"step": 1, "train_loss": 5.0}\n{"step": 2, "train')
    (one.folder / "outcome.json").write_text('{"schema_version": 1, "id": "')
    target = folder(tiny, 2) / name
    target.write_text(target.read_text()[:12])
    if name != "lease.1":
        lease.release(one.lease)
    found = work(tiny, claimant=Claimant(stale_seconds=0.2))
    assert {state.status for state in found.values()} == {"completed"}
    assert "published" in told(capsys, 2)[-1]


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_a_clock_that_was_set_back_or_ahead(tmp_path, shift):
    """A holder elsewhere whose beats are of another time keeps its run while it beats, and no longer."""
    elsewhere = dataclasses.replace(lease.this_process(), machine="another")
    held = Claimant(holder=elsewhere).claim(tmp_path)
    watcher = Claimant(stale_seconds=0.2)
    for beat in range(5):
        os.utime(held.path, (time.time() + shift + beat,) * 2)
        assert watcher.claim(tmp_path) is None
        time.sleep(0.08)
    wait_until(lambda: watcher.claim(tmp_path) is not None, seconds=5)
    assert not lease.owns(held)


def test_a_folder_that_is_deleted_while_its_run_trains(study, capsys, monkeypatch):
    tiny = study(GOOD, 2)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.1")
    monkeypatch.setattr(lease, "BEATS", 1200)
    deleted = []

    def obey(self):
        target = folder(tiny, 2)
        if not deleted and (target / "steps.log").exists():
            shutil.rmtree(target)
            deleted.append(target)
        return original(self)

    original = Worker._obey_requests
    monkeypatch.setattr(Worker, "_obey_requests", obey)
    found = work(tiny)
    assert {state.status for state in found.values()} == {"completed"}
    assert any("deleted, its folder was deleted or moved away while it ran" in line for line in told(capsys, 2))


def test_a_study_folder_that_is_deleted_is_not_made_anew(study, capsys, monkeypatch):
    tiny = study(GOOD, 2, 3, 4)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.1")
    deleted = []

    def obey(self):
        if not deleted and (folder(tiny, 2) / "steps.log").exists():
            shutil.rmtree(tiny.path)
            deleted.append(tiny.path)
        return original(self)

    original = Worker._obey_requests
    monkeypatch.setattr(Worker, "_obey_requests", obey)
    assert Worker(StudyFolder(tiny.path), Setup(slots=1), Claimant()).work() == 1
    assert not list(tiny.path.glob("*/metrics.json"))
    said = capsys.readouterr().out
    assert said.count("was deleted or moved away: no further run is started") == 1
    assert "left alone" not in said
    assert not tiny.path.exists()


def test_equal_failures_have_equal_signatures():
    one = {
        "class": "RuntimeError",
        "message": "shape 3 at 0x7f3a",
        "traceback_tail": ['  File "/a/b.py", line 3, in f'],
    }
    two = {"class": "RuntimeError", "message": "shape 4 at 0x55", "traceback_tail": ['  File "/c/b.py", line 9, in f']}
    assert signature(one) == signature(two)
    assert signature(one) != signature({**one, "class": "ValueError"})
    assert signature(one) != signature({**one, "traceback_tail": ['  File "/a/b.py", line 3, in g']})
