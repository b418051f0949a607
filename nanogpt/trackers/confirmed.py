"""The lines of a history that a checkpoint stands behind: only these are shown to a tracker.

A line beyond the last checkpoint is cut when a run is resumed, and is then written again: shown at once, it would
stand there twice. Read from the attempt's files, so that training neither knows nor waits.
"""

import json
import re
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"checkpoint-(\d+)\.pt\.sha256")


class ConfirmedLines:
    """The lines of an attempt's history.jsonl, each given once. Those up to `step` an earlier checkpoint confirms."""

    def __init__(self, attempt_folder: Path, step: int) -> None:
        self._folder, self._step = attempt_folder, step
        self._offset, self._torn = 0, b""
        self._waiting: list[dict[str, Any]] = []

    def take(self, everything: bool = False) -> list[dict[str, Any]]:
        """The lines confirmed since the last call; `everything` for a run that has ended and is not resumed."""
        confirmed = self._confirmed()  # before the lines: one written between the two looks is for the next call
        self._read()
        ready = [line for line in self._waiting if everything or line["step"] <= confirmed]
        self._waiting = self._waiting[len(ready) :]
        return ready

    def _confirmed(self) -> int:
        """The furthest step saved. A checkpoint removed since counts: there is always a later one when one is."""
        for path in self._folder.iterdir():
            if found := _DIGEST.fullmatch(path.name):
                self._step = max(self._step, int(found[1]))
        return self._step

    def _read(self) -> None:
        path = self._folder / "history.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        self._offset += len(fresh)
        *whole, self._torn = (self._torn + fresh).split(b"\n")
        self._waiting += [line for text in whole if (line := _parsed(text)) is not None]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
