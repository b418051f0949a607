"""What became of a trial, read from its runs' records: what a sampler is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from experiments.lock import LockedRun
from experiments.search.spec import Pruner, percent
from experiments.search.verdicts import read_verdict
from experiments.store import StudyFolder, published_record, state_of

State = Literal["completed", "diverged", "pruned", "refused", "failed", "open", "waiting"]
SETTLED = ("completed", "diverged", "pruned", "refused")  # what never changes again


@dataclass(frozen=True)
class Outcome:
    """A trial's state, its loss (the mean over its seeds), and the losses at its rungs, by percent of the horizon.

    `waiting` is a trial with a run that nobody trains now, `open` one whose runs are all finished or at work.
    """

    state: State
    value: float | None = None
    at_rungs: dict[int, float] = field(default_factory=dict)


def outcome_of(study: StudyFolder, runs: Sequence[LockedRun], pruner: Pruner) -> Outcome:
    """Read a trial's outcome from its run folders."""
    if not runs:
        return Outcome("refused")
    states = [state_of(study.folder(run)).status for run in runs]
    for name in ("diverged", "pruned"):
        if name in states and all(state in SETTLED for state in states):
            return Outcome(name, _loss(study, runs), _at_rungs(study, runs, pruner))
    if all(state == "completed" for state in states):
        return Outcome("completed", _loss(study, runs), _at_rungs(study, runs, pruner))
    if any(state not in (*SETTLED, "running", "failed") for state in states):
        return Outcome("waiting")
    return Outcome("failed" if "failed" in states and "running" not in states else "open")


def _loss(study: StudyFolder, runs: Sequence[LockedRun]) -> float | None:
    """The mean validation loss over the seeds that have one."""
    records = [published_record(study.folder(run)) for run in runs]
    losses = [record.val_loss for record in records if record is not None and record.val_loss is not None]
    return fmean(losses) if losses else None


def _at_rungs(study: StudyFolder, runs: Sequence[LockedRun], pruner: Pruner) -> dict[int, float]:
    """Percent of the horizon -> mean loss, for the rungs that every run of the trial has reached."""
    found: dict[int, float] = {}
    for index, fraction in enumerate(pruner.at):
        values = [verdict.value for run in runs if (verdict := read_verdict(study.folder(run), index)) is not None]
        losses = [value for value in values if value is not None]
        if len(losses) == len(runs):
            found[percent(fraction)] = fmean(losses)
    return found
