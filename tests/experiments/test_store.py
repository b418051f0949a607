"""The results folder: states from files alone, folders by id, locks that hold, drift, and endings of attempts."""

import dataclasses
import json
import signal

import pytest

from experiments import attempt as attempts
from experiments import lease
from experiments.attempt import claim
from experiments.lease import Claimant
from experiments.lock import read_lock, resolve
from experiments.outcomes import Exit
from experiments.policy import MOST_WITHOUT_ADVANCE
from experiments.runner import prepare, refuse_drift
from experiments.store import StudyFolder, state_of
from experiments.study import Study
from experiments.supervise import Supervise
from nanogpt.config import UserError
from nanogpt.configfile import load_config
from nanogpt.record import read_record, write_record

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def folder(write_study, tmp_path) -> StudyFolder:
    """A locked study of one run, nothing of it started."""
    from experiments.lock import write_lock

    path = tmp_path / "results" / "tiny"
    path.mkdir(parents=True)
    write_lock(path, resolve(Study.load(write_study("{grid: {n_layer: [1]}}"))))
    return StudyFolder(path)


def only(folder: StudyFolder) -> str:
    (state,) = folder.states().values()
    return state.status


def take(folder: StudyFolder):
    return claim(folder, folder.lock.runs[0], Claimant(), threads=3)


def settle(attempt, status: int, **more) -> str:
    return attempts.settle(attempt, Exit(status, **more), Supervise(retries=0)).ending


def test_states_follow_the_files(folder):
    assert only(folder) == "missing"
    attempt = take(folder)
    assert only(folder) == "running"
    assert settle(attempt, 75, reason="interrupted") == "interrupted"
    assert only(folder) == "interrupted"
    attempt = take(folder)
    assert attempt.lease.generation == 2
    assert settle(attempt, 1) == "failed"
    assert only(folder) == "failed"


def test_a_holder_that_vanished_leaves_its_run_lost(folder):
    ghost = Claimant(holder=dataclasses.replace(lease.this_process(), started="1"))
    claim(folder, folder.lock.runs[0], ghost, threads=1)
    assert only(folder) == "lost"


def test_folders_are_found_by_id_whatever_their_label(folder):
    run = folder.lock.runs[0]
    attempt = take(folder)
    settle(attempt, 1)
    attempt.lease.folder.rename(folder.path / f"another-label.{run.id}")
    assert only(StudyFolder(folder.path)) == "failed"
    again = StudyFolder(folder.path)
    again.folders()
    assert again.folder(run).name == f"another-label.{run.id}"


def test_a_run_folder_can_be_rerun_by_a_person(folder):
    attempt = take(folder)
    config = load_config(attempt.lease.folder / "config.yaml")
    assert config.runtime.threads == 3
    assert config.model.vocab_size == 256
    assert "nanogpt train" in (attempt.lease.folder / "launch.sh").read_text()


def test_threads_are_those_of_the_first_attempt(folder):
    settle(take(folder), 75)
    attempt = claim(folder, folder.lock.runs[0], Claimant(), threads=8)
    assert load_config(attempt.lease.folder / "config.yaml").runtime.threads == 3


def test_a_damaged_record_is_a_state(folder):
    attempt = take(folder)
    record = attempt.lease.folder / "metrics.json"
    record.write_text('{"schema_version": 1, "id"')
    (state,) = folder.states().values()
    assert (state.status, state.kind) == ("failed", "corrupt")
    assert f"{record}: damaged or truncated" in state.detail


@pytest.mark.parametrize(
    ("change", "message"),
    [({"id": "0" * 12}, "is the record of run 000000000000"), ({"status": "failed"}, "only a result is published")],
)
def test_a_record_that_is_not_this_runs_result_is_named(folder, change, message):
    attempt = take(folder)
    assert settle(attempt, 1) == "failed"
    record = read_record(attempt.folder / "outcome.json")
    write_record(attempt.lease.folder / "metrics.json", record.model_copy(update={"status": "diverged", **change}))
    (state,) = folder.states().values()
    assert (state.status, state.kind) == ("failed", "corrupt")
    assert message in state.detail


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (-signal.SIGSEGV, "Crashed", "crashed"),
        (139, "Crashed", "crashed"),
        (2, "UserError", "error"),
        (1, "Error", "error"),
        (0, "NoRecord", "crashed"),
    ],
)
def test_a_crash_is_recorded_with_its_class_and_the_end_of_its_log(folder, status, name, kind):
    attempt = take(folder)
    attempt.folder.mkdir(parents=True)
    attempt.log.write_text("first\nlast words\n")
    assert settle(attempt, status) == "failed"
    outcome = read_record(attempt.folder / "outcome.json")
    assert (outcome.error["class"], outcome.error["kind"]) == (name, kind)
    assert outcome.error["log_tail"] == ["first", "last words"]
    assert outcome.steps == 0
    (state,) = folder.states().values()
    assert (state.kind, state.signature) == (kind, outcome.error["signature"])


def test_a_killed_run_goes_on_until_it_was_killed_too_often(folder):
    endings = [settle(take(folder), -signal.SIGKILL) for _ in range(MOST_WITHOUT_ADVANCE + 1)]
    assert endings == ["interrupted"] * MOST_WITHOUT_ADVANCE + ["failed"]
    assert "6 times in a row without a new checkpoint" in next(iter(folder.states().values())).detail


def test_a_killed_run_goes_on_as_long_as_its_checkpoint_advances(folder):
    for step in range(3 * MOST_WITHOUT_ADVANCE):
        attempt = take(folder)
        attempt.folder.mkdir(parents=True)
        (attempt.folder / f"checkpoint-{step + 1}.pt").touch()
        assert settle(attempt, -signal.SIGKILL) == "interrupted"


def test_a_run_whose_workers_keep_dying_is_written_off(folder):
    ghost = Claimant(holder=dataclasses.replace(lease.this_process(), started="1"))
    for _ in range(MOST_WITHOUT_ADVANCE + 1):
        assert claim(folder, folder.lock.runs[0], ghost, threads=1) is not None
        assert only(folder) == "lost"
    assert take(folder) is None
    assert only(folder) == "failed"


@pytest.mark.parametrize(
    ("reason", "status", "state"),
    [("preempted", 75, "preempted"), ("interrupted", 75, "interrupted"), ("", 75, "preempted"), ("", -9, "lost")],
)
def test_who_ended_a_run_is_told_apart(folder, reason, status, state):
    assert settle(take(folder), status, reason=reason) == "interrupted"
    assert only(folder) == state


def test_a_superseded_attempt_publishes_nothing(folder):
    first = take(folder)
    lease.release(first.lease)
    second = take(folder)
    assert settle(first, 0) == "superseded"
    assert state_of(first.lease.folder).generation == second.lease.generation
    assert not (first.folder / "outcome.json").exists()


def test_a_finished_attempt_whose_worker_died_is_published_not_repeated(folder):
    import fake_engine

    attempt = take(folder)
    assert fake_engine.main(attempt.arguments(None)) == 0
    lease.release(attempt.lease)
    assert take(folder) is None
    assert only(folder) == "completed"
    assert read_record(attempt.lease.folder / "metrics.json").factors == {"model.n_layer": 1}


def test_a_lock_holds_until_what_it_was_made_from_changes(write_study, folder, monkeypatch):
    study = Study.load(write_study("{grid: {n_layer: [1]}}"))
    monkeypatch.setenv("NANOGPT_ENGINE", "no_such_engine")  # resolving anything would fail
    assert not prepare(study, folder.path).is_new
    study = Study.load(write_study("{grid: {n_layer: [1]}}", "report: {x: tokens}"))
    prepared = prepare(study, folder.path)
    assert prepared.is_new
    assert prepared.study.lock.runs == folder.lock.runs
    with pytest.raises(RuntimeError, match="describing the runs failed"):
        prepare(Study.load(write_study("{grid: {n_layer: [1, 2]}}")), folder.path)


def test_a_started_run_that_changed_under_the_study_has_drifted(write_study, folder):
    settle(take(folder), 75)
    path = write_study("{grid: {n_layer: [1]}}", "config: {n_embd: 16}")
    prepared = prepare(Study.load(path), folder.path)
    with pytest.raises(UserError, match=r"(?s)1 run drifted.*--rerun-drifted or --keep-drifted.*model.n_embd: 8 -> 16"):
        refuse_drift(prepared)
    old = folder.lock.runs[0]
    kept = prepare(Study.load(path), folder.path, "keep").study.lock.runs
    assert [(run.id, run.config) for run in kept] == [(old.id, old.config)]
    rerun = prepare(Study.load(path), folder.path, "rerun").study.lock.runs
    assert [run.config["model"]["n_embd"] for run in rerun] == [16]
    assert read_lock(folder.path).runs == [old]  # nothing was written


def test_a_change_before_anything_started_is_no_drift(write_study, folder):
    study = Study.load(write_study("{grid: {n_layer: [1]}}", "config: {n_embd: 16}"))
    refuse_drift(prepare(study, folder.path))


def test_two_points_that_resolve_to_one_run_are_trained_once(write_study):
    lock = resolve(Study.load(write_study("{grid: {vocab_size: [auto, 256]}}")))
    assert len(lock.runs) == 1
    assert "the same run as vocab_size=auto" in lock.notes[0]


def test_runs_that_differ_in_no_identity_are_refused(write_study):
    with pytest.raises(UserError, match=r"are one run: runtime.log_interval is not part of a run's identity"):
        resolve(Study.load(write_study("{grid: {log_interval: [1, 2]}}")))


def test_a_run_that_cannot_be_resolved_is_placed(write_study):
    with pytest.raises(UserError, match=r"tiny.yaml:4: seed=105: the corpus is nowhere to be found"):
        resolve(Study.load(write_study("{seeds: [105]}")))


def test_a_lock_from_a_newer_version_is_refused(folder):
    path = folder.path / "study.lock.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(UserError, match="written by a newer version"):
        read_lock(folder.path)
