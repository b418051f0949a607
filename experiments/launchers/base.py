"""What a launcher is: it starts workers on a results folder, and says whether any of them still lives."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """What the workers are asked to do: how many runs at a time, and whether failed runs are tried again."""

    jobs: int | None = None
    retry_failed: bool = False


class Workers(Protocol):
    """The workers that one `start` brought up."""

    def poll(self) -> int | None:
        """Exit status of the workers, or None while any of them lives."""

    def stop(self) -> None:
        """Ask the runs to save a checkpoint and end. Returns at once."""

    def kill(self) -> None:
        """End everything now."""

    def wait(self, seconds: float) -> int | None:
        """As `poll`, after waiting at most this long for the end."""

    def last_words(self) -> list[str]:
        """The end of the workers' log, for the case that they died."""


class Launcher(Protocol):
    """Starts workers somewhere. Knows nothing of training."""

    def start(self, folder: Path, job: Job) -> Workers:
        """Bring up workers for the study in `folder`. Raises UserError when this place cannot have any."""


def available_cores() -> int:
    """The cores this process may use, which under a batch system are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
