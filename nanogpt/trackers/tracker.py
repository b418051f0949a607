"""What a tracker is: something outside that is shown a run's curve. Our own JSON and JSONL stay the primary record."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config.tracker import AnyTracker
from nanogpt.record import attempt_folder

Metrics = dict[str, float]
# Of these a tracker with one horizontal axis shows a second curve over tokens or FLOPs.
LOSSES = ("train_loss", "val_loss")


@dataclass(frozen=True)
class TrackedRun:
    """One attempt at a run as a tracker sees it.

    `id` is the same for all attempts at one record, and for no other record in the world. `earlier_step` is how far
    earlier attempts have handed their lines to a tracker of this kind, as far as our own files know.
    """

    id: str
    name: str
    folder: Path
    attempt: int
    settings: AnyTracker
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    earlier_step: int = 0

    @property
    def attempt_folder(self) -> Path:
        return attempt_folder(self.folder, self.attempt)


class Tracker(ABC):
    """Shows one run somewhere else. Everything is called from one thread, which is not the one that trains.

    Any of these may raise or hang: the run is told in one line and goes on without its tracker.
    """

    upload: str = ""  # "live", "later", or nothing where that makes no sense
    place: str = ""  # where it lies, relative to the attempt's folder, where it is uploaded from there
    warning: str = ""  # what a person should know after `start`, in one line

    @abstractmethod
    def start(self, run: TrackedRun) -> int:
        """Begin, or go on with what an earlier attempt began.

        Returns the step up to which it has the run's lines, so that these are not shown twice. 0 means that it begins
        anew, and that whatever it had of this run is replaced: then it gets all lines again, from the first.
        """

    @abstractmethod
    def log(self, lines: Sequence[Metrics]) -> None:
        """Show lines of the history, in order and each once. `step`, `tokens` and mostly `flops` are in each."""

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """End: `status` is that of the record (completed, diverged, failed, interrupted), `summary` its numbers."""


def as_metrics(line: Mapping[str, Any]) -> Metrics:
    """A line of the history as flat numbers: `probes: {a: {b: 1}}` is `probes/a/b`. What is not finite is left out."""
    return dict(_flat(line, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _flat(child, f"{name}/{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, value


def as_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record, under its own names, and its status."""
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
    numbers.pop("schema_version", None)
    return {"status": record["status"], **numbers}
