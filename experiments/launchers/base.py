"""What a launcher is: it starts workers on a results folder, and says whether any of them still lives."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from experiments.launchers.settings import LauncherSettings, LocalSettings
from experiments.launchers.submitted import Submission

if TYPE_CHECKING:
    from experiments.standby import Standby


@dataclass(frozen=True)
class Job:
    """What the workers are asked to do: where, how many runs at a time, and whether failed runs are tried again.

    `standby` is a worker on this machine that was started ahead; a launcher that has no use for it leaves it alone.
    """

    settings: LauncherSettings = field(default_factory=LocalSettings)
    jobs: int | None = None
    retry_failed: bool = False
    standby: "Standby | None" = None

    @property
    def at_a_time(self) -> int | None:
        """Runs at a time on one worker, None where the launcher decides."""
        return self.jobs or self.settings.jobs


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

    def check(self, job: Job) -> None:
        """Raises UserError when this place cannot have any workers, before anything is written for them."""

    def start(self, folder: Path, job: Job) -> Workers:
        """Bring up workers for the study in `folder`. Raises UserError when this place cannot have any."""

    def alive(self, submission: Submission) -> int | None:
        """How many workers of a submission are pending or running; None when the engine cannot be asked."""

    def cancel(self, submission: Submission) -> None:
        """End a submission's workers: they save checkpoints and give their runs back."""


def available_cores() -> int:
    """The cores this process may use, which under a batch system are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
