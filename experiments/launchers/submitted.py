"""Submissions: what a launcher leaves behind whose workers outlive the driver, so that any later command finds them.

One file per submission, `<study>/workers/<name>.json`. While it is not ended, runs that nobody holds are *queued*,
unless its workers belong to a driver that is gone: killed, a driver ends no submission.
"""

import contextlib
import json
import os
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments import lease

WORKERS = "workers"
ENDED = ".ended.json"


def now() -> str:
    """The present time in ISO form, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Submission:
    """`handle` is whatever finds the workers again: a job number, an address; `driver` in it is the process without
    which they end."""

    launcher: str
    name: str
    workers: int
    handle: dict[str, Any]
    submitted: str = field(default_factory=now)


def write_submission(folder: Path, submission: Submission) -> None:
    """Record a submission in a study's results folder, as one act."""
    home = folder / WORKERS
    home.mkdir(parents=True, exist_ok=True)
    draft = home / f".{submission.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        draft.write_text(json.dumps(asdict(submission), indent=1) + "\n", encoding="utf-8")
        draft.replace(home / f"{submission.name}.json")
    finally:
        draft.unlink(missing_ok=True)


def submissions(folder: Path) -> list[Submission]:
    """The submissions of a study that have not ended, the oldest first. A damaged file counts as none."""
    try:
        names = sorted(os.listdir(folder / WORKERS))
    except OSError:
        return []
    found = []
    for name in names:
        if name.endswith(".json") and not name.endswith(ENDED) and not name.startswith("."):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Submission(**json.loads((folder / WORKERS / name).read_text(encoding="utf-8"))))
    return sorted(found, key=lambda submission: (submission.submitted, submission.name))


def awaited(folder: Path) -> list[Submission]:
    """The submissions whose workers may still come, as far as files tell: none whose driver is gone."""
    return [submission for submission in submissions(folder) if driver_lives(folder, submission) is not False]


def driver_lives(folder: Path, submission: Submission) -> bool | None:
    """Whether the driver of a submission lives: a process of this machine, or elsewhere one that beats on its record.

    None for workers that need no driver. For one elsewhere the clock decides what is shown; claims never rely on it.
    """
    try:
        driver = lease.Holder(**submission.handle["driver"])
        beat = (folder / WORKERS / f"{submission.name}.json").stat().st_mtime
    except (KeyError, TypeError):
        return None
    except OSError:
        return False
    return lease.is_alive(driver) if lease.is_local(driver) else time.time() - beat < lease.STALE_SECONDS


def end_submission(folder: Path, name: str) -> None:
    """Mark a submission as ended; nothing is deleted, and a second call changes nothing."""
    with contextlib.suppress(FileNotFoundError):
        (folder / WORKERS / f"{name}.json").rename(folder / WORKERS / f"{name}{ENDED}")
