"""One attempt at a run by a worker: claim it, prepare its folder, and settle how it ended."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from experiments import engine, lease, marks, policy
from experiments.branching import FROM_SCRATCH, Start
from experiments.lease import Claimant, Lease
from experiments.lock import LockedRun
from experiments.outcomes import (
    LOG_NAME,
    OUTCOME_NAME,
    Ended,
    Exit,
    classify,
    failure,
    log_tail,
    read_outcome,
    signature,
    written_off,
)
from experiments.policy import MOST_WITHOUT_ADVANCE, Try, judge
from experiments.runfiles import current_config, write_run_files
from experiments.search.pruned import publish_if_pruned
from experiments.store import StudyFolder
from experiments.supervise import Supervise
from nanogpt.config import free_bytes
from nanogpt.record import PUBLISHED, Record, attempt_folder, attempt_numbers, publish, write_record


@dataclass(frozen=True)
class Attempt:
    """A claimed run: its folder, and the lease under which this attempt trains it."""

    run: LockedRun
    lease: Lease
    start: Start = FROM_SCRATCH

    @property
    def folder(self) -> Path:
        return attempt_folder(self.lease.folder, self.lease.generation)

    @property
    def log(self) -> Path:
        return self.folder / LOG_NAME

    def arguments(self, parent_fd: int | None) -> list[str]:
        told = engine.train_arguments(self.lease.folder, self.lease.generation, self.lease.fence, parent_fd)
        return [*told, *self.start.arguments()]


def claim(
    study: StudyFolder, run: LockedRun, claimant: Claimant, threads: int | None, after: int | None = None
) -> Attempt | None:
    """Take a run and prepare its folder; None when it is held by another worker, or needs no training.

    A finished attempt whose worker died before it could publish is published here instead of trained again; a run
    whose workers keep dying is written off here. `after` is the generation looked at before.
    Raises OSError when the folder cannot be written.
    """
    folder = study.folder(run)
    folder.mkdir(exist_ok=True)  # the study's own folder is not made anew: who deleted it meant that
    held = claimant.claim(folder, after)
    if held is None:
        return None
    try:
        if _publish_earlier(held, run) or _write_off(held, run):
            lease.release(held)
            return None
        retry = marks.read_retry(folder, held.generation - 1)
        cut = retry.micro_batch_size if retry is not None else None
        write_run_files(folder, run, threads, cut, study.lock.name)
    except BaseException:
        give_back(held)
        raise
    return Attempt(run, held)


def give_back(held: Lease) -> None:
    """Release a lease under which nothing was started, as far as the folder lets us."""
    with contextlib.suppress(OSError):
        lease.release(held)


def _publish_earlier(held: Lease, run: LockedRun) -> bool:
    for number in reversed(attempt_numbers(held.folder)):
        outcome = read_outcome(held.folder, number)
        if outcome is not None and outcome.status in PUBLISHED:
            publish(held.folder, number, run.factors)
            return True
        if publish_if_pruned(held.folder, number, run):
            return True
    return False


def _write_off(held: Lease, run: LockedRun) -> bool:
    """Whether the run was lost so often that nobody should try it again unasked; then this attempt says so."""
    if not policy.keeps_dying(tries(held.folder, held.generation - 1)):
        return False
    attempt = Attempt(run, held)
    _write(attempt, None, _standstill({"class": "Lost", "message": "its worker died"}))
    return True


def tries(folder: Path, last: int) -> list[Try]:
    """The attempts of a run up to `last`, as its files tell them."""
    return [Try(_ended(folder, g), _saved_step(folder, g), marks.read_retry(folder, g)) for g in range(1, last + 1)]


def _ended(folder: Path, generation: int) -> Ended:
    outcome = read_outcome(folder, generation)
    if outcome is not None:
        return Ended("failed" if outcome.status == "failed" else "interrupted", outcome.error)
    given_back = lease.is_released(folder, generation)
    return Ended("interrupted", None if given_back else {"kind": "lost", "class": "Lost"})


def _saved_step(folder: Path, generation: int) -> int | None:
    """The furthest step that an attempt saved."""
    names = (path.stem.partition("-")[2] for path in attempt_folder(folder, generation).glob("checkpoint-*.pt"))
    return max((int(name) for name in names if name.isdigit()), default=None)


Ending = Literal["published", "failed", "retry", "interrupted", "superseded", "deleted"]


@dataclass(frozen=True)
class Settled:
    """How an attempt ended, in one line for the log, and for a failure its class and signature."""

    ending: Ending
    detail: str = ""
    ended: Ended | None = None


def settle(attempt: Attempt, ending: Exit, supervise: Supervise | None = None) -> Settled:
    """Record how an attempt ended, publish its result if it has one, and give the lease back.

    Raises OSError when the folder cannot be written: then the lease is still held, and this may be called again.
    """
    if not attempt.lease.path.exists():
        return Settled("deleted", "its folder was deleted or moved away while it ran")
    if not lease.owns(attempt.lease):
        return Settled("superseded", "another worker took it over")
    settled = _settle(attempt, ending, supervise or Supervise())
    lease.release(attempt.lease)
    return settled


def _settle(attempt: Attempt, ending: Exit, supervise: Supervise) -> Settled:
    outcome = read_outcome(attempt.lease.folder, attempt.lease.generation)
    if outcome is not None and outcome.status in PUBLISHED:
        publish(attempt.lease.folder, attempt.lease.generation, attempt.run.factors)
        return Settled("published", outcome.status)
    if publish_if_pruned(attempt.lease.folder, attempt.lease.generation, attempt.run):
        return Settled("published", "pruned")
    room = free_bytes(attempt.lease.folder)
    ended = classify(replace(ending, free_bytes=room), outcome, log_tail(attempt.log))
    if ended.error is not None:
        _write(attempt, outcome, ended)
    past = tries(attempt.lease.folder, attempt.lease.generation)
    if ended.status == "interrupted" and policy.keeps_dying(past):
        ended = _standstill(ended.error or {})
        _write(attempt, outcome, ended)
        return Settled("failed", failure(ended.error), ended)
    if ended.status == "interrupted":
        return Settled("interrupted", failure(ended.error), ended)
    verdict = judge(past, supervise, current_config(attempt.lease.folder, attempt.run))
    told = f"{ended.kind}: {failure(ended.error)}"
    if verdict.retry is None:
        return Settled("failed", f"{told} (not tried again: {verdict.why})", ended)
    marks.ask_retry(attempt.lease.folder, attempt.lease.generation, verdict.retry)
    return Settled("retry", f"{told} (tried again: {verdict.retry.why})", ended)


def _standstill(error: dict[str, object]) -> Ended:
    """The end of a run that was taken away again and again without getting any further."""
    message = f"{error.get('message')}, {MOST_WITHOUT_ADVANCE + 1} times in a row without a new checkpoint"
    told = {**error, "class": "Killed", "message": message}
    return Ended("failed", {**told, "kind": "crashed", "signature": signature(told)})


def _write(attempt: Attempt, outcome: Record | None, ended: Ended) -> None:
    """The outcome with its class: the child's own where it left one."""
    record = outcome or written_off(attempt.run, attempt.folder, attempt.lease.generation, ended)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    update = {"status": ended.status, "error": ended.error}
    write_record(attempt.folder / OUTCOME_NAME, record.model_copy(update=update))
