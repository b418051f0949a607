"""What people and accidents leave in a study's folder: stray leases, records set aside, a damaged lock, nothing."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, wait_until

from experiments import lease
from experiments.__main__ import main
from experiments.attempt import claim
from experiments.launchers.slurm_script import run_grace
from experiments.lease import Claimant, highest, top_generation
from experiments.outcomes import Exit, classify
from experiments.retrying import mark_retries
from experiments.store import StudyFolder
from experiments.worker import Setup, Worker

pytestmark = pytest.mark.usefixtures("fake_engine")


def why(study: StudyFolder, capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["status", str(study.path), "--why"]) == 0
    return next(line for line in capsys.readouterr().out.splitlines() if all(word in line for word in words))


def test_generations_have_no_gap(tmp_path):
    assert highest(["lease.1", "lease.2", "lease.99", "lease.2.released", "lease.01x"]) == 2
    assert highest(["lease.99"]) == highest([]) == 0
    first = Claimant().claim(tmp_path)
    (tmp_path / "lease.99").write_text("a copy, a slip of the hand")
    assert top_generation(tmp_path) == 1
    assert Claimant().claim(tmp_path) is None  # held, whatever else lies there
    lease.release(first)
    second = Claimant().claim(tmp_path)
    assert second.generation == 2
    assert not lease.owns(first)  # beyond a gap, the first attempt would not have been fenced off


def test_a_stray_lease_is_no_attempt(study, capsys):
    run = study.runs()[0]
    lease.release(claim(study, run, Claimant(), threads=1).lease)
    (study.folder(run) / "lease.99").touch()
    assert "it was stopped early, attempt 1; on `run`: start attempt 2" in why(study, capsys, run.id)


def test_a_record_that_was_set_aside_is_published_again_and_so_it_is_told(study, capsys):
    Worker(StudyFolder(study.path), Setup(slots=1)).work()
    study.folders()
    run = next(run for run in study.runs() if run.config["seed"] == 1)
    record = study.folder(run) / "metrics.json"
    whole = record.read_text()
    record.write_text(whole[:40])
    assert "failed: its last attempt ended with an error (corrupt)" in why(study, capsys, run.id)
    assert main(["retry", str(study.path), "--class", "corrupt", "--mark-only"]) == 0
    told = why(study, capsys, run.id)
    assert "a file of it was damaged (corrupt), attempt 1: the damaged metrics.json was set aside" in told
    assert told.endswith("on `run`: publish the result of attempt 1")
    Worker(StudyFolder(study.path), Setup(slots=1)).work()
    assert record.read_text() == whole
    assert [path.name for path in (study.folder(run) / "attempts").iterdir()] == ["1"]


def test_checkpoints_that_are_all_damaged_are_told_with_what_helps(tmp_path):
    from nanogpt.checkpoint import load_latest
    from nanogpt.config import UserError

    home = tmp_path / "attempts" / "1"
    home.mkdir(parents=True)
    for name, text in {"checkpoint-00000002.pt": "torn", "checkpoint-00000002.pt.sha256": "0" * 64}.items():
        (home / name).write_text(text)
    with pytest.raises(UserError, match="no good checkpoint to resume from") as caught:
        load_latest(tmp_path)
    ended = classify(Exit(2), None, [f"nanogpt: {caught.value}"])
    assert ended.kind == "corrupt"
    assert ended.error["message"].endswith("(its sha256 does not match)); `forget` the run, and it starts anew")


def test_what_lies_in_a_folders_place_takes_no_mark(study):
    run = study.runs()[0]
    study.folder(run).write_text("a file")
    assert study.states()[run.id].kind == "corrupt"
    assert mark_retries(study) == 0


def test_a_holder_elsewhere_that_is_silent_is_told_with_its_host(study, capsys):
    run = study.runs()[0]
    held = claim(study, run, Claimant(), threads=1).lease
    held.path.write_text(
        held.path.read_text().replace(lease.machine_id(), "elsewhere").replace('"host": "', '"host": "n')
    )
    os.utime(held.path, (0, 0))
    assert ", attempt 1: last seen on n" in why(study, capsys, run.id)


def test_a_truncated_lock_says_what_to_do_and_that_works(write_study, tmp_path, capsys):
    path, out = write_study(), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), "--no-report"]) == 0
    lock = out / "tiny" / "study.lock.json"
    whole = lock.read_bytes()
    lock.write_bytes(whole[:200])
    capsys.readouterr()
    assert main(["status", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{lock}: damaged or truncated")
    assert "move it aside and `run` the study's YAML file again: finished runs are kept" in error
    assert error.count("\n") == 1
    lock.rename(tmp_path / "aside")
    assert main(["run", str(path), "--out", str(out), "--no-report"]) == 0
    assert "2 of 2 runs are finished; nothing was left" not in capsys.readouterr().err
    assert lock.read_bytes() == whole
    assert len(list(out.glob("tiny/*/attempts/*"))) == 2


@pytest.mark.parametrize("gone", ["folder", "lock"])
def test_a_study_that_is_deleted_while_it_runs_is_told_once(write_study, tmp_path, monkeypatch, gone):
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments", "run", str(write_study("{seeds: 3}")), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--jobs", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(out.glob("tiny/*/steps.log")))
    if gone == "folder":
        (out / "tiny").rename(tmp_path / "moved")
    else:
        (out / "tiny" / "study.lock.json").unlink()
    said, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith(f"{out}/tiny: was deleted or moved away while its runs trained; they have ended.")
    assert error.count("\n") == 1
    assert "go on with" not in said + error
    assert (out / "tiny").exists() == (gone == "lock")
    shutil.rmtree(out)


def test_a_worker_gives_its_runs_the_grace_of_its_launcher(study):
    setup = Setup(grace=600.0)
    worker = Worker(StudyFolder(study.path), setup)
    worker._life_read, worker._life_write = os.pipe()
    assert worker._nursery().grace == 600.0
    os.close(worker._life_read)
    os.close(worker._life_write)
    # Slurm kills when all of it has passed: the worker needs some for itself.
    assert [run_grace(grace) for grace in (600, 60, 10, 0)] == [590, 50, 5, 0]


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_a_grace_that_is_no_time_is_refused(study, capsys, text):
    with pytest.raises(SystemExit):
        main(["worker", str(study.path), f"--grace={text}"])
    assert "must be a number of seconds" in capsys.readouterr().err


def test_a_workers_claimant_is_one(study):
    claimant = Claimant()
    worker = Worker(StudyFolder(study.path), Setup(), claimant)
    assert worker.claimant is worker.queue.claimant is claimant
    assert Worker(StudyFolder(study.path), Setup()).claimant.stale_seconds == lease.STALE_SECONDS
