"""What a study has to do with trackers: checked before anything starts, and told once. They run in the engine alone."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from experiments.doctor.finding import Finding, ok, problem, warning
from experiments.store import StudyFolder
from nanogpt.config import UserError
from nanogpt.config.tracker import AnyTracker, NoTracker, TrackerSection, WandB
from nanogpt.trackers import check_installed, forget_unreachable, note_unreachable, wandb_mode, why_unreachable

_SECTION: TypeAdapter[AnyTracker] = TypeAdapter(TrackerSection)


def tracker_of(runtime: Mapping[str, Any]) -> AnyTracker:
    """The tracker of a `runtime` section; one from before there were any has none."""
    section = runtime.get("tracker")
    return NoTracker() if section is None else _SECTION.validate_python(section)


def _trackers(runtimes: Iterable[Mapping[str, Any]]) -> list[AnyTracker]:
    """Each tracker once."""
    seen: list[AnyTracker] = []
    for runtime in runtimes:
        tracker = tracker_of(runtime)
        if tracker not in seen:
            seen.append(tracker)
    return seen


def _of(study: StudyFolder) -> list[AnyTracker]:
    return _trackers(run.config["runtime"] for run in study.runs())


def check_trackers(study: StudyFolder) -> None:
    """Raises UserError when the package of a tracker is not installed here: better now than once per run."""
    for tracker in _of(study):
        check_installed(tracker)


def tell_offline(study: StudyFolder) -> None:
    """Say once that W&B cannot be reached, and spare each run the finding out."""
    reason = _why_offline(_of(study))
    if reason is None:
        forget_unreachable(study.path)
    else:
        note_unreachable(study.path, reason)
        later = f"`python -m experiments sync {study.path}` uploads them later"
        print(f"tracker wandb: the runs are recorded offline, because {reason}; {later}", file=sys.stderr)


def _why_offline(trackers: Iterable[AnyTracker]) -> str | None:
    """Why runs that should be uploaded while they train cannot be; None where none should, or all can.

    Takes at most seconds.
    """
    live = any(isinstance(tracker, WandB) and tracker.upload == "live" for tracker in trackers)
    return why_unreachable() if live and wandb_mode() not in ("offline", "disabled") else None


def examine_trackers(runtimes: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """What `doctor` says of the trackers of a study's runs."""
    trackers = [tracker for tracker in _trackers(runtimes) if tracker.kind != "none"]
    if not trackers:
        yield ok("tracker", "none is configured: results lie in files alone")
    for tracker in trackers:
        try:
            check_installed(tracker)
        except UserError as error:
            yield problem("tracker", str(error), "or train without: --set tracker=none")
            continue
        reason = _why_offline([tracker])
        if reason is None:
            yield ok("tracker", tracker.kind)
        else:
            yield warning(
                "tracker", f"{tracker.kind}: {reason}", "runs are recorded offline; `sync` uploads them later"
            )
