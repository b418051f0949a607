"""What a study has to do with trackers: checked before anything starts, and told once. They run in the engine alone."""

import sys
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from experiments.lock import LockedRun
from experiments.store import StudyFolder
from nanogpt.config.tracker import AnyTracker, NoTracker, TrackerSection, WandB
from nanogpt.trackers import check_installed, note_unreachable, wandb_mode, why_unreachable

_SECTION: TypeAdapter[AnyTracker] = TypeAdapter(TrackerSection)


def tracker_of(run: LockedRun) -> AnyTracker:
    """A run's tracker; one from before there were any has none."""
    section: dict[str, Any] | None = run.config["runtime"].get("tracker")
    return NoTracker() if section is None else _SECTION.validate_python(section)


def _trackers(study: StudyFolder) -> Iterator[AnyTracker]:
    """Each tracker of a study once."""
    seen: list[AnyTracker] = []
    for run in study.runs():
        tracker = tracker_of(run)
        if tracker not in seen:
            seen.append(tracker)
            yield tracker


def check_trackers(study: StudyFolder) -> None:
    """Raises UserError when the package of a tracker is not installed here: better now than once per run."""
    for tracker in _trackers(study):
        check_installed(tracker)


def tell_offline(study: StudyFolder) -> None:
    """Say once that W&B cannot be reached, and spare each run the finding out."""
    reason = why_offline(study)
    if reason is not None:
        note_unreachable(study.path, reason)
        later = f"`python -m experiments sync {study.path}` uploads them later"
        print(f"tracker wandb: the runs are recorded offline, because {reason}; {later}", file=sys.stderr)


def why_offline(study: StudyFolder) -> str | None:
    """Why the runs of a study that should be uploaded while they train cannot be; None where none should, or all can.

    Takes at most seconds.
    """
    live = any(isinstance(tracker, WandB) and tracker.upload == "live" for tracker in _trackers(study))
    return why_unreachable() if live and wandb_mode() not in ("offline", "disabled") else None
