"""history.jsonl while a run trains: one line at a time, flushed, and stitched over attempts."""

import json
import math
from pathlib import Path
from typing import Any, Self

from nanogpt.config import naming
from nanogpt.record import read_history


class HistoryWriter:
    """Appends lines to an attempt's history.jsonl; a number that is not finite is written as null."""

    def __init__(self, path: Path, earlier: list[dict[str, Any]]) -> None:
        self._path, self._file = path, path.open("w", encoding="utf-8", buffering=1)
        for line in earlier:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        with naming(self._path):
            self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with naming(self._path):
            self._file.close()


def history_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of an earlier attempt up to the step that its checkpoint stands at.

    Damaged lines are left out: they are for people to look at, and no reason to lose a good checkpoint.
    """
    return [line for line in read_history(path, forgiving=True) if line["step"] <= step]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items() if child is not None}
    return None if isinstance(value, float) and not math.isfinite(value) else value
