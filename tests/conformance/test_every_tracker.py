"""Every tracker of the registry: after a kill a curve has each point once, and two records are never one curve.

Slow part, which loads TensorBoard: under 10 s.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from recorders import FakeWandB, install

from nanogpt.config.tracker import AnyTracker, TrackerSection
from nanogpt.trackers import TRACKERS, TrackedRun, make_tracker, tracker_id, wandb_run
from nanogpt.trackers.tracker import as_metrics

LINES = [
    {"step": step, "tokens": 64 * step, "flops": 1e6 * step, "train_loss": 4.0 - step / 8} for step in range(1, 13)
]
LINES[3]["val_loss"] = 3.25
SUMMARY = {"val_loss": 2.5, "steps": 12, "n_params": 4080}
RUN_ID = "0123456789ab"


def settings_of(kind: str) -> AnyTracker:
    return TypeAdapter(TrackerSection).validate_python(kind)


def run_in(folder: Path, settings: AnyTracker, attempt: int) -> TrackedRun:
    run = TrackedRun(
        tracker_id(folder, RUN_ID), folder.name, folder, attempt, settings, {"seed": 1, "model": {"n_layer": 2}}, {}
    )
    run.attempt_folder.mkdir(parents=True, exist_ok=True)
    return run


def show(run: TrackedRun, lines: list[dict[str, Any]], ends: bool) -> Any:
    """One attempt: what the mirror does with a tracker, with or without an end."""
    tracker = make_tracker(run.settings)
    held = tracker.start(run)
    tracker.log([as_metrics(line) for line in lines if line["step"] > held])
    if ends:
        tracker.finish("completed", {"status": "completed", **SUMMARY})
    return tracker


SLOW = {"tensorboard": [pytest.mark.slow]}  # loading it takes seconds; the others have stand-ins


@pytest.fixture(params=[pytest.param(kind, marks=SLOW.get(kind, [])) for kind in TRACKERS])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_MODE", "offline")
    return request.param


def test_a_curve_has_each_point_once_after_a_kill(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, settings = install(kind, monkeypatch), settings_of(kind)
    killed = show(run_in(tmp_path, settings, 1), LINES[:6], ends=False)
    assert read(run_in(tmp_path, settings, 1), killed)[-1][0] == 6  # shown before the end
    again = show(run_in(tmp_path, settings, 2), LINES, ends=True)
    run = run_in(tmp_path, settings, 2)
    assert read(run, again) == [(line["step"], pytest.approx(line["train_loss"])) for line in LINES]


def test_two_records_of_one_config_are_two_curves(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, settings = install(kind, monkeypatch), settings_of(kind)
    runs, trackers = [], []
    for person, lines in (("ann", LINES[:5]), ("bob", LINES)):
        folder = tmp_path / person / f"seed=1.{RUN_ID}"
        folder.mkdir(parents=True)
        runs.append(run_in(folder, settings, 1))
        trackers.append(show(runs[-1], lines, ends=True))
    assert runs[0].id != runs[1].id
    assert [len(read(run, tracker)) for run, tracker in zip(runs, trackers, strict=True)] == [5, 12]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    """W&B with a key, a network and a server."""
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_run, "why_unreachable", lambda: None)
    return fake


def test_wandb_online_goes_on_where_its_server_is(wandb: FakeWandB, tmp_path: Path) -> None:
    settings = settings_of("wandb")
    show(run_in(tmp_path, settings, 1), LINES[:6], ends=False)
    tracker = show(run_in(tmp_path, settings, 2), LINES, ends=True)
    (points, summary), asked, run = wandb.server[run_in(tmp_path, settings, 2).id], wandb.inits[1], wandb.runs[1]
    assert [line["step"] for line in points] == list(range(1, 13))
    assert points[3] == {**LINES[3], "by_flops/train_loss": 3.5, "by_flops/val_loss": 3.25}
    assert run.metrics == {"step": None, "tokens": None, "flops": None, "*": "tokens", "by_flops/*": "flops"}
    assert summary["n_params"] == 4080
    assert (tracker.upload, run.exit_code, run.preempting) == ("live", 0, False)
    assert asked["resume"] == "allow"
    assert asked["config"]["model"] == {"n_layer": 2}
    assert asked["settings"].init_timeout <= 10


def test_wandb_goes_offline_at_once_and_beside_a_run_that_did(wandb: FakeWandB, tmp_path: Path) -> None:
    """The second run of a study does not wait for the same server again."""
    wandb.is_away = True
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run = run_in(tmp_path / name, settings_of("wandb"), 1)
        tracker = show(run, LINES, ends=True)
        assert tracker.upload == "later"
        assert "timed out" in tracker.warning
        assert (run.attempt_folder / tracker.place / f"run-{run.id}.wandb").exists()
    assert [asked["mode"] for asked in wandb.inits] == ["online", "offline", "offline"]


def test_an_interrupted_run_is_preempted_and_a_failed_one_failed(wandb: FakeWandB, tmp_path: Path) -> None:
    for number, (status, code, preempting) in enumerate([("interrupted", 75, True), ("failed", 1, False)], start=1):
        tracker = make_tracker(settings_of("wandb"))
        tracker.start(run_in(tmp_path, settings_of("wandb"), number))
        tracker.finish(status, {"status": status})
        assert (wandb.runs[-1].exit_code, wandb.runs[-1].preempting) == (code, preempting)


def test_trackio_on_a_full_disk_is_told_from_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("trackio", monkeypatch)
    show(run_in(tmp_path, settings_of("trackio"), 1), LINES[:6], ends=True)
    monkeypatch.setattr(sys.modules["trackio"], "is_full", True)
    with pytest.raises(OSError, match="ends at step 6 of 12; is its disk full"):
        show(run_in(tmp_path, settings_of("trackio"), 2), LINES, ends=True)
