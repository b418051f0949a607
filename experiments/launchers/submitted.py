"""Submissions: what a launcher leaves behind whose workers outlive the driver, so that any later command finds them.

One file per submission, `<study>/workers/<name>.json`. While it is not ended, runs that nobody holds are *queued*.
"""

import contextlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

WORKERS = "workers"
ENDED = ".ended.json"


def now() -> str:
    """The present time in ISO form, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Submission:
    """`handle` is whatever finds the workers again: a job number, an address."""

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


def end_submission(folder: Path, name: str) -> None:
    """Mark a submission as ended; nothing is deleted, and a second call changes nothing."""
    with contextlib.suppress(FileNotFoundError):
        (folder / WORKERS / f"{name}.json").rename(folder / WORKERS / f"{name}{ENDED}")
