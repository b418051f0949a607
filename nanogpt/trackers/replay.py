"""A finished run shown to a tracker after the fact, from its record and its history."""

from pathlib import Path

from nanogpt.config import UserError
from nanogpt.config.tracker import AnyTracker
from nanogpt.record import attempt_folder, attempt_numbers, read_history, read_published
from nanogpt.trackers.files import earlier_step, tracker_id, write_state
from nanogpt.trackers.registry import make_tracker
from nanogpt.trackers.tracker import TrackedRun, Tracker, as_metrics, as_summary


def replay(folder: Path, settings: AnyTracker) -> Tracker:
    """Show a finished run's whole curve and its numbers. What the tracker has of it already is not shown again.

    Raises UserError for a run without a result, and whatever the tracker raises.
    """
    record = read_published(folder)
    lines = read_history(folder / "history.jsonl", forgiving=True)
    if not lines:
        raise UserError(f"{folder / 'history.jsonl'}: has no lines to show")
    attempt = max(attempt_numbers(folder), default=1)
    attempt_folder(folder, attempt).mkdir(parents=True, exist_ok=True)
    run = TrackedRun(
        id=tracker_id(folder, record.id),
        name=folder.resolve().name,
        folder=folder,
        attempt=attempt,
        settings=settings,
        config=record.config,
        facts={"id": record.id, "factors": record.factors, "n_params": record.n_params},
        earlier_step=earlier_step(folder, settings.kind),
    )
    tracker = make_tracker(settings)
    held = tracker.start(run)
    tracker.log([as_metrics(line) for line in lines if line["step"] > held])
    tracker.finish(record.status, as_summary(record.model_dump(mode="json")))
    state = {"kind": settings.kind, "state": "finished", "step": lines[-1]["step"], "id": run.id}
    write_state(folder, attempt, {**state, "upload": tracker.upload, "place": tracker.place})
    return tracker
