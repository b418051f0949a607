"""What a run's folder keeps of its tracker: the id, made once per record, and how far each attempt got."""

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.record import attempt_folder, attempt_numbers, read_json, write_atomic
from nanogpt.trackers.reach import asked_as

NAME = "tracker.json"
OFFLINE_NAME = ".tracker-offline"  # beside the runs of a study
OFFLINE_SECONDS = 600.0


def tracker_id(folder: Path, run_id: str) -> str:
    """The run's id and 8 hex digits, made once and kept: attempts continue one curve, other people's are another.

    Two attempts that make it at once get the same one: it appears by link(2). Raises OSError when it cannot be kept.
    """
    path = folder / NAME
    if path.exists():
        known = str(_read(path).get("id"))
        if known.startswith(f"{run_id}-"):
            return known
        path.unlink(missing_ok=True)  # damaged, or copied from another run
    temporary = folder / f".tracker.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.write_text(json.dumps({"id": f"{run_id}-{uuid.uuid4().hex[:8]}"}) + "\n", encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return str(_read(path)["id"])


def write_state(folder: Path, attempt: int, state: dict[str, Any]) -> None:
    """Note how far an attempt's tracker is. Raises OSError when that cannot be kept."""
    write_atomic(attempt_folder(folder, attempt) / NAME, json.dumps(state) + "\n", durable=False)


def read_states(folder: Path) -> dict[int, dict[str, Any]]:
    """The states of all attempts that had a tracker, in order."""
    found = {number: _read(attempt_folder(folder, number) / NAME) for number in attempt_numbers(folder)}
    return {number: state for number, state in found.items() if state}


def earlier_step(folder: Path, kind: str) -> int:
    """How far the attempts so far have shown the run to a tracker of this kind."""
    return max(
        (int(each.get("step", 0)) for each in read_states(folder).values() if each.get("kind") == kind), default=0
    )


def note_unreachable(folder: Path, reason: str) -> None:
    """Spare the other runs in `folder` the seconds that it takes to find out again, as far as the folder lets us."""
    with contextlib.suppress(OSError):
        write_atomic(folder / OFFLINE_NAME, f"{asked_as()} {reason}\n", durable=False)


def forget_unreachable(folder: Path) -> None:
    """The network is back: the runs in `folder` are to look for themselves."""
    with contextlib.suppress(OSError):
        (folder / OFFLINE_NAME).unlink(missing_ok=True)


def recently_unreachable(folder: Path) -> str | None:
    """Why another run in `folder` could not reach its tracker in the last minutes, asking as one would ask now."""
    path = folder / OFFLINE_NAME
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if time.time() - path.stat().st_mtime < OFFLINE_SECONDS:
            asked, _, reason = path.read_text(encoding="utf-8").strip().partition(" ")
            return reason or None if asked == asked_as() else None
    return None


def _read(path: Path) -> dict[str, Any]:
    """A damaged file has nothing to say: a tracker is no reason to end."""
    try:
        return read_json(path) if path.exists() else {}
    except (UserError, OSError):
        return {}
