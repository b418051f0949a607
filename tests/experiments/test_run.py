"""Whole studies with the fake engine: run, run again, failures, and kills of every process there is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

from nanogpt.record import read_record

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


def states(command, results, name="tiny") -> dict[str, str]:
    answer = json.loads(command("status", results / name, "--json").stdout)
    return {run["label"]: run["status"] for run in answer["runs"]}


def processes_of(results: Path) -> list[int]:
    """Every process whose command line names the results folder; forked children carry their worker's."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            # A zombie has no command line: it is gone but for its parent's notice.
            if entry.name.isdigit() and str(results).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def steps_done(results: Path) -> dict[str, list[int]]:
    """Every step that any attempt of a run ever did, by run folder."""
    logs = results.glob("*/*/steps.log")
    return {log.parent.name: [int(line.split()[1]) for line in log.read_text().splitlines()] for log in logs}


def start_slow(monkeypatch, results, study, *more: str) -> "subprocess.Popen[str]":
    """A run in the background whose steps take long enough to be caught at work."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    line = [sys.executable, "-m", "experiments", "run", str(study), "--out", str(results), "--no-report", "--jobs", "2"]
    process = subprocess.Popen([*line, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: any(len(steps) > 3 for steps in steps_done(results).values()))
    return process


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=60)
    return output


SLOW = "{grid: {n_layer: [1, 2, 3], max_iters: [20]}}"


def test_a_study_runs_once_and_a_second_call_starts_nothing(command, write_study, results, monkeypatch):
    study = write_study("{grid: {n_layer: [1, 2]}, seeds: 2}")
    first = command("run", study, "--out", results)
    assert first.returncode == 0, first.stderr
    assert "4 missing" in first.stdout
    assert "completed   n_layer=2-seed=1  val_loss 2." in first.stdout
    assert "4 of 4 runs are finished" in first.stdout
    assert (results / "tiny" / "report.html").exists()
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    monkeypatch.setenv("NANOGPT_ENGINE", "no_such_engine")
    second = command("run", study, "--out", results)
    assert second.returncode == 0, second.stderr
    assert "nothing was left to do" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_run_folders_hold_what_a_person_needs(command, write_study, results):
    command("run", write_study("{grid: {n_layer: [1]}}"), "--out", results, "--no-report", "--jobs", "1")
    (run,) = (results / "tiny").glob("n_layer=1.*")
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {"config.yaml", "launch.sh", "metrics.json", "history.jsonl", "lease.1", "attempts/1/log.txt"} <= names
    assert (results / "tiny" / "study.yaml").read_text() == write_study("{grid: {n_layer: [1]}}").read_text()
    threads = f"with {len(os.sched_getaffinity(0))} threads"
    assert threads in (run / "attempts" / "1" / "log.txt").read_text()


def test_failures_leave_the_others_alone_and_wait_for_a_retry(command, write_study, results):
    study = write_study("{seeds: [1, 100, 101, 102, 103, 104]}", "supervise: {backoff: 0}")
    first = command("run", study, "--out", results, "--no-report")
    assert first.returncode == 1
    expected = {"1": "completed", "100": "failed", "101": "failed", "102": "diverged", "103": "failed", "104": "failed"}
    assert states(command, results) == {f"seed={seed}": status for seed, status in expected.items()}
    assert "4 failed:" in first.stderr
    assert "error: RuntimeError: told to fail" in first.stderr
    assert "crashed: Crashed: died of SIGSEGV" in first.stderr
    assert "error: UserError: the corpus is nowhere to be found" in first.stderr
    assert "crashed: NoRecord: ended with exit status 0 and no record" in first.stderr
    assert f"retry {study} --out {results} --failed" in first.stderr
    # Each was tried again by itself, but for the mistake; the same failure twice was not tried a third time.
    assert len(list(results.glob("tiny/*/lease.2"))) == 3
    again = command("run", study, "--out", results, "--no-report")
    assert again.returncode == 1
    assert not list(results.glob("tiny/*/lease.3"))
    assert command("run", study, "--out", results, "--no-report", "--retry-failed").returncode == 1
    assert len(list(results.glob("tiny/*/lease.3"))) == 3
    assert not list(results.glob("tiny/*/lease.4"))


@pytest.mark.parametrize("victims", ["runner", "runner and worker"])
def test_a_killed_runner_leaves_no_process_and_is_taken_up_again(command, write_study, results, monkeypatch, victims):
    study = write_study(SLOW)
    process = start_slow(monkeypatch, results, study)
    wait_until(lambda: list(results.glob("tiny/*/metrics.json")))
    wait_until(lambda: len(steps_done(results)) == 3)
    if victims != "runner":
        worker = next(pid for pid in processes_of(results) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
    process.kill()
    finish(process)
    wait_until(lambda: not processes_of(results))
    finished = {path: path.read_bytes() for path in results.glob("tiny/*/metrics.json")}
    assert 0 < len(finished) < 3
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.001")
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    assert {path: path.read_bytes() for path in finished} == finished
    # Every run did each of its steps once: nothing finished was redone, and the interrupted went on where it was.
    assert {name: Counter(steps).most_common(1)[0][1] for name, steps in steps_done(results).items()} == dict.fromkeys(
        steps_done(results), 1
    )
    assert [len(steps) for steps in steps_done(results).values()] == [20] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_checkpoints_and_says_how_to_go_on(command, write_study, results, monkeypatch, number):
    study = write_study(SLOW)
    process = start_slow(monkeypatch, results, study)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 130
    assert f"go on with: python -m experiments run {study} --out {results}\n" in output
    wait_until(lambda: not processes_of(results))
    assert set(states(command, results).values()) <= {"interrupted", "completed", "missing"}
    assert "interrupted" in states(command, results).values()


def test_a_killed_run_is_resumed_by_its_worker(command, write_study, results, monkeypatch):
    process = start_slow(monkeypatch, results, write_study("{grid: {n_layer: [1], max_iters: [20]}}"))
    workers = {pid for pid in processes_of(results) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    child = next(pid for pid in workers if int(Path(f"/proc/{pid}/stat").read_text().split()[3]) in workers)
    os.kill(child, signal.SIGKILL)
    assert "1 of 1 runs are finished" in finish(process)
    assert process.returncode == 0
    outcome = read_record(next(results.glob("tiny/*/attempts/1/outcome.json")))
    assert (outcome.error["kind"], outcome.error["message"]) == ("lost", "ended by SIGKILL")
    assert max(Counter(next(iter(steps_done(results).values()))).values()) <= 2


def test_two_runners_share_a_study(command, write_study, results, monkeypatch):
    study = write_study("{grid: {n_layer: [1, 2, 3, 4], max_iters: [20]}}")
    first = start_slow(monkeypatch, results, study)
    second = command("run", study, "--out", results, "--no-report")
    finish(first)
    assert (first.returncode, second.returncode) == (0, 0)
    assert [sorted(steps) for steps in steps_done(results).values()] == [list(range(1, 21))] * 4


def test_a_results_folder_can_be_given_instead_of_its_study(command, write_study, results):
    study = write_study()
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    study.unlink()
    assert "2 completed" in command("status", results / "tiny").stdout
    assert command("run", results / "tiny", "--no-report").returncode == 0
    listing = command("results", results / "tiny").stdout
    assert "best: n_layer=2" in listing


def test_drifted_runs_stop_the_study_until_someone_decides(command, write_study, results):
    study = write_study("{grid: {n_layer: [1, 2]}}")
    assert command("run", study, "--out", results, "--no-report").returncode == 0
    write_study("{grid: {n_layer: [1, 2]}}", "config: {n_embd: 16}")
    assert "the study has changed since it was last run" in command("status", study, "--out", results).stdout
    stopped = command("run", study, "--out", results, "--no-report")
    assert stopped.returncode == 2
    assert "2 runs drifted" in stopped.stderr
    assert "model.n_embd: 8 -> 16" in stopped.stderr
    kept = command("run", study, "--out", results, "--no-report", "--keep-drifted")
    assert "nothing was left to do" in kept.stdout or "2 of 2 runs are finished" in kept.stdout
    assert len(list(results.glob("tiny/*/metrics.json"))) == 2
    write_study("{grid: {n_layer: [1, 2]}}", "config: {n_embd: 32}")
    assert command("run", study, "--out", results, "--no-report", "--rerun-drifted").returncode == 0
    assert len(list(results.glob("tiny/*/metrics.json"))) == 4
    assert len(states(command, results)) == 2


def test_runs_in_this_process_for_a_debugger(write_study, results, capfd):
    from experiments.__main__ import main

    study = write_study("{seeds: [1, 100]}")
    status = main(["run", str(study), "--out", str(results), "--no-report", "--launcher", "inprocess"])
    assert status == 1
    assert "training seed=1." in capfd.readouterr().out
