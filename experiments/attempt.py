"""One attempt at a run by a worker: claim it, prepare its folder, and settle how it ended."""

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments import engine, lease
from experiments.lease import Claimant, Lease
from experiments.lock import LockedRun
from experiments.search.pruned import publish_if_pruned
from experiments.store import StudyFolder, read_record_if_there, state_of, write_run_files
from nanogpt.config import UserError
from nanogpt.record import PUBLISHED, Record, attempt_folder, attempt_numbers, publish, read_history, write_record

LOG_NAME = "log.txt"
OUTCOME_NAME = "outcome.json"
LOG_LINES = 20
# Killed from outside, a run goes on from its checkpoint; killed this often in a row, it is the cause: memory, mostly.
MOST_KILLS = 3
KILLED = "Killed"
# Someone asked these runs to end. Other signals (a segmentation fault, an abort) come from the run itself.
ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Attempt:
    """A claimed run: its folder, and the lease under which this attempt trains it."""

    run: LockedRun
    lease: Lease

    @property
    def folder(self) -> Path:
        return attempt_folder(self.lease.folder, self.lease.generation)

    @property
    def log(self) -> Path:
        return self.folder / LOG_NAME

    def arguments(self, parent_fd: int | None) -> list[str]:
        return engine.train_arguments(self.lease.folder, self.lease.generation, self.lease.fence, parent_fd)


def claim(study: StudyFolder, run: LockedRun, claimant: Claimant, threads: int | None) -> Attempt | None:
    """Take a run and prepare its folder; None when it is held by another worker, or needs no training.

    A finished attempt whose worker died before it could publish is published here instead of trained again.
    """
    folder = study.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    held = claimant.claim(folder)
    if held is None:
        return None
    if _publish_earlier(held, run):
        lease.release(held)
        return None
    write_run_files(folder, run, threads)
    return Attempt(run, held)


def _publish_earlier(held: Lease, run: LockedRun) -> bool:
    for number in reversed(attempt_numbers(held.folder)):
        outcome = read_record_if_there(attempt_folder(held.folder, number) / OUTCOME_NAME)
        if outcome is not None and outcome.status in PUBLISHED:
            publish(held.folder, number, run.factors)
            return True
        if publish_if_pruned(held.folder, number, run):
            return True
    return False


Ending = Literal["published", "failed", "interrupted", "superseded"]


def settle(attempt: Attempt, exit_status: int, stopping: bool = False) -> Ending:
    """Record how an attempt ended, publish its result if it has one, and give the lease back.

    `exit_status` is the engine's, or minus the signal that ended it. `stopping` says that the worker asked it to end.
    """
    if not lease.owns(attempt.lease):
        return "superseded"
    try:
        return _settle(attempt, exit_status, stopping)
    finally:
        lease.release(attempt.lease)


def _settle(attempt: Attempt, exit_status: int, stopping: bool) -> Ending:
    outcome = _outcome(attempt)
    if outcome is not None and outcome.status in PUBLISHED:
        publish(attempt.lease.folder, attempt.lease.generation, attempt.run.factors)
        return "published"
    if publish_if_pruned(attempt.lease.folder, attempt.lease.generation, attempt.run):
        return "published"
    if outcome is not None:
        return "interrupted" if outcome.status == "interrupted" else "failed"
    if exit_status == engine.INTERRUPTED or (stopping and exit_status < 0):
        return "interrupted"
    killed = -exit_status in ENDED_FROM_OUTSIDE
    again = killed and _kills_before(attempt) + 1 < MOST_KILLS
    write_record(
        attempt.folder / OUTCOME_NAME, _crash_record(attempt, exit_status, "interrupted" if again else "failed")
    )
    return "interrupted" if again else "failed"


def _outcome(attempt: Attempt) -> Record | None:
    """What the child wrote about its end. A damaged outcome is as good as none: the child broke while writing."""
    with contextlib.suppress(UserError):
        return read_record_if_there(attempt.folder / OUTCOME_NAME)
    return None


def _kills_before(attempt: Attempt) -> int:
    """How many attempts right before this one were killed from outside."""
    count = 0
    for number in range(attempt.lease.generation - 1, 0, -1):
        outcome = read_record_if_there(attempt_folder(attempt.lease.folder, number) / OUTCOME_NAME)
        if outcome is None or (outcome.error or {}).get("class") != KILLED:
            break
        count += 1
    return count


def _crash_record(attempt: Attempt, exit_status: int, status: Literal["failed", "interrupted"]) -> Record:
    """The outcome of a child that could not write one itself."""
    attempt.folder.mkdir(parents=True, exist_ok=True)
    run, history = attempt.run, _history(attempt)
    steps = int(history[-1]["step"]) if history else 0
    done = steps / max(run.steps, 1)
    return Record(
        id=run.id,
        status=status,
        steps=steps,
        tokens=round(run.tokens * done),
        flops=run.flops * done,
        flops_per_token=run.flops_per_token,
        n_params=run.n_params,
        n_params_non_embedding=run.n_params_non_embedding,
        n_params_active=run.n_params_active,
        wall_seconds=0.0,
        cpu_seconds=0.0,
        seed=run.config["seed"],
        attempts=attempt.lease.generation,
        config=run.config,
        factors=run.factors,
        parameters=run.parameters,
        environment={},
        error=_error(attempt, exit_status),
    )


def _history(attempt: Attempt) -> list[dict[str, Any]]:
    with contextlib.suppress(UserError):
        return read_history(attempt.folder / "history.jsonl")
    return []


def _error(attempt: Attempt, exit_status: int) -> dict[str, Any]:
    tail = log_tail(attempt.log)
    if -exit_status in ENDED_FROM_OUTSIDE:
        name = signal.Signals(-exit_status).name
        return {"class": KILLED, "message": f"ended by {name}", "exit_status": exit_status, "log_tail": tail}
    if exit_status < 0:
        name = signal.Signals(-exit_status).name
        return {"class": "Crashed", "message": f"died of {name}", "exit_status": exit_status, "log_tail": tail}
    kind = "UserError" if exit_status == engine.MISTAKE else "NoRecord"
    message = tail[-1] if tail else f"exit status {exit_status} and no record"
    return {"class": kind, "message": message, "exit_status": exit_status, "log_tail": tail}


def log_tail(log: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def may_train(folder: Path, retry_generation: int | None) -> bool:
    """Whether a run still needs a worker: neither finished, nor failed without anyone asking for a retry.

    `retry_generation` is the failed attempt after which a person asked to try again.
    """
    state = state_of(folder)
    if state.status == "failed":
        return state.generation == retry_generation
    return state.status not in PUBLISHED
