"""Reconciling a study with what people and engines do to it: why, retry, cancel, forget, exclusions, queues."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

from experiments import lease, marks
from experiments.__main__ import main
from experiments.attempt import claim
from experiments.conclude import report_meta
from experiments.exclusions import read_exclusions
from experiments.launchers.submitted import Submission, write_submission
from experiments.lease import Claimant
from experiments.results import load
from experiments.search.trials import Trial, publish_trial
from experiments.selection import find_runs
from experiments.store import StudyFolder
from nanogpt.config import UserError

pytestmark = pytest.mark.usefixtures("fake_engine")


def run(study: StudyFolder, *more: str) -> int:
    return main(["run", str(study.path), "--no-report", "--jobs", "2", *more])


def by_seed(study: StudyFolder) -> dict[int, str]:
    states = study.states()
    return {each.config["seed"]: states[each.id].status for each in study.runs()}


def of(study: StudyFolder, seed: int):
    return next(each for each in study.runs() if each.config["seed"] == seed)


def test_status_says_why_and_what_would_happen(study, capsys):
    assert main(["status", str(study.path), "--why"]) == 0
    assert "missing: it was never started; on `run`: start it" in capsys.readouterr().out
    assert run(study) == 1
    told = capsys.readouterr()
    assert "start        4 missing: it was never started: seed=1, seed=100, seed=102, seed=103" in told.out
    assert main(["status", str(study.path), "--why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 2 failed, 1 diverged, 1 completed"
    assert ": failed: its last attempt ended with an error (error), attempt 1: RuntimeError: told to fail" in lines[1]
    assert lines[1].endswith("on `run`: nothing, it waits for `retry`")
    assert "completed: it was trained to the end" in lines[-1]


def test_status_shows_failures_with_the_end_of_their_logs(study, capsys):
    run(study)
    capsys.readouterr()
    main(["status", str(study.path), "--failed"])
    told = capsys.readouterr().out
    assert "error: UserError: the corpus is nowhere to be found" in told
    assert "| the corpus is nowhere to be found" in told
    main(["status", str(study.path), "--failed", "--json", "--why"])
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["status"], row["kind"]) for row in rows] == [("failed", "error")] * 2
    assert all(row["next"] == "nothing, it waits for `retry`" for row in rows)


def test_a_dry_run_changes_nothing(study, capsys):
    assert run(study, "--dry-run") == 0
    assert "4 missing" in capsys.readouterr().out
    assert not study.folders()


def test_retry_takes_the_failed_runs_meant(study, capsys):
    run(study)
    retry = ["retry", str(study.path), "--no-report", "--jobs", "2"]
    assert main([*retry, "--class", "oom", "--mark-only"]) == 0
    assert "0 runs marked" in capsys.readouterr().out
    assert main([*retry, of(study, 103).id[:6], "--mark-only"]) == 0
    assert by_seed(study) == {1: "completed", 100: "failed", 102: "diverged", 103: "interrupted"}
    assert main(["status", str(study.path), "--why"]) == 0
    assert "interrupted: an attempt failed (error), attempt 1" in capsys.readouterr().out
    assert main([*retry, "--failed"]) == 1
    attempts = {seed: len(list((study.folder(of(study, seed)) / "attempts").iterdir())) for seed in (1, 100, 103)}
    assert attempts == {1: 1, 100: 2, 103: 2}


MISTAKES = {
    "nothing named": (["retry"], "retry: give --failed, --class CLASS, or the ids of runs"),
    "a finished run": (["retry", "seed=1"], "seed=1: is completed; only a failed run is tried again"),
    "an unknown run": (["retry", "seed=1000"], "seed=1000: no such run; did you mean 'seed=100'?"),
    "a run that rests": (["cancel", "seed=1"], "seed=1: is completed; only a running run is cancelled"),
    "forgetting nothing": (["forget"], "forget: give the ids of runs"),
    "forgetting nobody": (["forget", "nobody-knows"], "nobody-knows: no such run"),
}


def test_a_mistake_is_one_line(study, capsys):
    run(study)
    capsys.readouterr()
    for name, ((verb, *words), message) in MISTAKES.items():
        assert main([verb, str(study.path), *words]) == 2, name
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_runs_are_named_by_unambiguous_beginnings(study):
    runs = study.runs()
    assert find_runs(runs, [runs[0].id, runs[0].label]) == [runs[0]]
    with pytest.raises(UserError, match="could be any of 4 runs"):
        find_runs(runs, [""])


def test_forgetting_moves_aside_and_refuses_what_runs(study, capsys):
    run(study)
    assert main(["forget", str(study.path), "seed=102", "seed=100"]) == 0
    assert by_seed(study)[102] == by_seed(study)[100] == "missing"
    moved = list((study.path / "forgotten").iterdir())
    assert len(moved) == 2
    assert all((path / "config.yaml").exists() for path in moved)
    claim(study, of(study, 100), Claimant(), threads=1)
    assert main(["forget", str(study.path), "seed=100"]) == 2
    assert "is running; `cancel` it first" in capsys.readouterr().err


@pytest.fixture
def slow(write_study, tmp_path, monkeypatch):
    """A study of three long runs at work, one slot."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    path = write_study("{grid: {n_layer: [1, 2, 3], max_iters: [2000]}}")
    line = [sys.executable, "-m", "experiments", "run", str(path), "--out", str(tmp_path / "results"), "--no-report"]
    process = subprocess.Popen(
        [*line, "--jobs", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: list((tmp_path / "results").glob("tiny/*/attempts/1/checkpoint-*")))
    yield StudyFolder(tmp_path / "results" / "tiny"), process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def count(study: StudyFolder, status: str) -> int:
    return sum(state.status == status for state in study.states().values())


def test_cancel_stops_the_workers_alive_now(slow, capsys):
    study, process = slow
    assert main(["cancel", str(study.path)]) == 0
    assert "1 running; its workers save checkpoints and end" in capsys.readouterr().out
    process.wait(60)
    assert (count(study, "interrupted"), count(study, "missing")) == (1, 2)


def test_cancelling_one_run_leaves_the_others_to_the_worker(slow):
    study, _ = slow
    (first,) = (id for id, state in study.states().items() if state.status == "running")
    assert main(["cancel", str(study.path), first]) == 0
    wait_until(lambda: study.states()[first].status == "interrupted" and count(study, "running") == 1)
    assert study.states()[first].generation == 1


def test_a_signal_to_the_worker_alone_is_a_preemption(slow):
    study, process = slow
    (state,) = (state for state in study.states().values() if state.status == "running")
    (folder,) = (path for path in study.folders().values() if (path / "lease.1").exists())
    holder = lease.read_holder(folder / "lease.1")
    os.kill(holder.pid, signal.SIGUSR1)
    process.wait(60)
    assert state.generation == 1
    assert count(study, "preempted") == 1


def test_exclusions_are_left_out_of_fits_and_said(study, capsys):
    run(study)
    (study.path / "exclusions.yaml").write_text(
        "# What we do not trust.\n- {run: seed=1, reason: the node overheated, date: 2026-03-01}\n"
    )
    assert read_exclusions(study.path, study.runs())[of(study, 1).id].reason == "the node overheated"
    table = load(study)
    assert list(table["excluded"].dropna()) == ["the node overheated (2026-03-01)"]
    from experiments.analysis.axes import counts
    from experiments.analysis.columns import finished

    assert not finished(table).any()
    assert counts(table).endswith("; 1 excluded")
    capsys.readouterr()
    main(["status", str(study.path)])
    assert "left out of fits: seed=1" in capsys.readouterr().out
    notes = report_meta(study).notes  # a report says it where there is no fit, too
    assert [note for note in notes if "the node overheated" in note and "seed=1" in note]


BAD_EXCLUSIONS = {
    "- {run: seed=2, reason: r, date: d}": "exclusions.yaml:1: run: seed=2: no such run; did you mean 'seed=1",
    "- {run: seed=1, reason: r}": "exclusions.yaml:1: date: is missing",
    "- {run: seed=1, reson: r, date: d}": "exclusions.yaml:1: reson: no such key; did you mean 'reason'?",
    "- seed=1": "exclusions.yaml:1: expected run, reason and date, got 'seed=1'",
    "runs: []": "exclusions.yaml:1: expected a list of {run, reason, date}",
    "- {run: [": "exclusions.yaml:2: not YAML",
    "- {run: seed=1, reason: r, date: d}\n- {run: seed=1, reason: s, date: d}": "exclusions.yaml:2: run: ",
}


@pytest.mark.parametrize("text", BAD_EXCLUSIONS)
def test_a_bad_exclusions_file_is_one_line(study, capsys, text):
    (study.path / "exclusions.yaml").write_text(text)
    assert main(["results", str(study.path)]) == 2
    error = capsys.readouterr().err
    assert BAD_EXCLUSIONS[text] in error
    assert error.count("\n") == 1


def test_runs_of_a_submission_are_queued(study, capsys):
    write_submission(study.path, Submission("slurm", "slurm-7", 4, {"job": 7}))
    assert set(by_seed(study).values()) == {"queued"}
    main(["status", str(study.path)])
    told = capsys.readouterr().out
    assert "4 queued" in told
    assert "submitted: slurm-7, 4 workers by slurm" in told
    claim(study, of(study, 1), Claimant(), threads=1)
    assert by_seed(study)[1] == "running"


def test_proposed_trials_are_runs(study):
    extra = study.lock.runs[0].model_copy(update={"id": "a" * 12, "label": "trial=0"})
    publish_trial(study.path, Trial(trial=0, search="x", sampler="tpe", seed=0, settings={}, runs=[extra]))
    assert [each.id for each in study.runs()][-1] == "a" * 12
    assert study.states()["a" * 12].status == "missing"


def test_drifted_runs_are_told_apart_after_they_were_trained_anew(write_study, tmp_path, command, capsys):
    out = tmp_path / "results"
    path = write_study("{grid: {n_layer: [1]}}")
    assert command("run", path, "--out", out, "--no-report").returncode == 0
    write_study("{grid: {n_layer: [1]}}", "config: {n_embd: 16}")
    assert command("run", path, "--out", out, "--no-report", "--rerun-drifted").returncode == 0
    assert main(["status", str(out / "tiny"), "--why"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny: 1 drifted, 1 completed\n")
    assert "drifted: its config has changed since, and it was trained anew: trained anew as" in told


def test_marks_are_made_once(tmp_path):
    assert marks.ask_retry(tmp_path, 1, marks.Retry("policy", "why", 3.0, 4))
    assert not marks.ask_retry(tmp_path, 1, marks.Retry())
    assert marks.read_retry(tmp_path, 1) == marks.Retry("policy", "why", 3.0, 4)
    Path(tmp_path / "lease.2.retry").touch()
    assert marks.read_retry(tmp_path, 2) == marks.Retry()
