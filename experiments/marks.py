"""Requests laid beside a lease or in a study's folder: try again, stop this attempt, stop the workers.

Files that are made once and never deleted, so that any worker on any host reads the same and a kill loses none.
"""

import contextlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.lease import RECORD_NAME, link_text

WORKERS = "workers"
STOP = "stop."
DAMAGED = f"{RECORD_NAME}.damaged-"


@dataclass(frozen=True)
class Retry:
    """Someone wants the attempt after a failed one: a person, or the policy after `wait` seconds."""

    by: str = "person"
    why: str = "asked for"
    wait: float = 0.0
    micro_batch_size: int | None = None


def retry_path(folder: Path, generation: int) -> Path:
    return folder / f"lease.{generation}.retry"


def cancel_path(folder: Path, generation: int) -> Path:
    return folder / f"lease.{generation}.cancel"


def ask_retry(folder: Path, generation: int, retry: Retry) -> bool:
    """Returns False when it had been asked for already. Raises OSError when the folder cannot be written."""
    return link_text(json.dumps(asdict(retry)), retry_path(folder, generation))


def read_retry(folder: Path, generation: int) -> Retry | None:
    """None when nobody asked. A file made by `touch`, or a torn one, counts as a person's wish."""
    try:
        text = retry_path(folder, generation).read_text(encoding="utf-8")
    except OSError:
        return None
    with contextlib.suppress(ValueError, TypeError):
        return Retry(**json.loads(text))
    return Retry()


def ask_cancel(folder: Path, generation: int) -> None:
    cancel_path(folder, generation).touch()


def ask_stop(study: Path) -> None:
    """Ask every worker of a study that lives now to stop."""
    home = study / WORKERS
    home.mkdir(exist_ok=True)
    (home / f"{STOP}{uuid.uuid4().hex}").touch()


def stops(study: Path) -> frozenset[str]:
    """The stops asked for so far: a worker obeys those that are not there yet when it starts."""
    try:
        return frozenset(name for name in os.listdir(study / WORKERS) if name.startswith(STOP))
    except OSError:
        return frozenset()


def set_damaged_aside(folder: Path) -> None:
    """Rename a published record that cannot be read, so that the run can have one again. Nothing is deleted."""
    record = folder / RECORD_NAME
    if record.exists():
        record.rename(folder / f"{DAMAGED}{uuid.uuid4().hex[:8]}")
