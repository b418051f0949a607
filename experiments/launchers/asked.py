"""What the engines say of a study's submissions: files alone cannot tell that a job was cancelled by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.launchers import launcher_named
from experiments.launchers.submitted import Submission, submissions
from nanogpt.config import UserError


class Sent(NamedTuple):
    """A submission, and how many of its workers its engine says wait or run: None when it cannot be asked."""

    submission: Submission
    alive: int | None


def ask_engines(folder: Path) -> list[Sent]:
    """Every submission that has not ended, with what its engine says. Changes nothing."""
    return [Sent(each, _alive(each)) for each in submissions(folder)]


def _alive(submission: Submission) -> int | None:
    try:
        return launcher_named(submission.launcher).alive(submission)
    except UserError:
        return None


def anything_queued(sent: Sequence[Sent]) -> bool | None:
    """Whether submitted workers are still to come: False when all engines deny it, None where files must tell."""
    return False if sent and all(each.alive == 0 for each in sent) else None
