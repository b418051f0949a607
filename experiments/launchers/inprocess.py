"""The `inprocess` launcher: one run after another in this very process, for a debugger or a traceback on the screen."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import engine, lease
from experiments.attempt import Attempt, claim, settle
from experiments.launchers.base import Job, available_cores
from experiments.launchers.submitted import Submission
from experiments.lease import Claimant, LeaseLost
from experiments.lock import LockedRun
from experiments.outcomes import Exit
from experiments.queue import Queue
from experiments.search.pruning import Judge
from experiments.store import StudyFolder
from experiments.supervise import Supervise, check_supervise
from nanogpt.config import UserError

LOOK_SECONDS = 0.2


class InProcess:
    """Trains when started, and returns when nothing is left to do."""

    def check(self, job: Job) -> None:
        """This very machine can always have a worker."""

    def start(self, folder: Path, job: Job) -> "Finished":
        study = StudyFolder(folder)
        supervise = check_supervise(study.lock.supervise, str(folder))
        claimant, failed = Claimant(supervise.lease), 0
        queue = Queue(study, job.retry_failed, claimant=claimant)
        search = study.lock.search
        judge = Judge(study, search) if search is not None and search.pruner.kind != "none" else None
        for run in _with_proposals(study, queue):
            ending = "retry"
            while ending == "retry" and queue.wants(run):
                attempt = claim(study, run, claimant, available_cores())
                if attempt is not None:
                    attempt = replace(attempt, start=queue.branching.start(run))
                ending = _train(attempt, supervise, claimant.beat_seconds, judge) if attempt is not None else ""
            if ending == "interrupted":
                return Finished(engine.INTERRUPTED)
            queue.drop(run)  # so that no run waits for its trunk
            queue.branching.tidy(run)
            failed += ending == "failed"
        return Finished(engine.FAILED if failed else engine.COMPLETED)

    def alive(self, submission: Submission) -> int | None:
        """Its workers end with the driver: there are no submissions."""
        return None

    def cancel(self, submission: Submission) -> None:
        """Its workers end with the driver: there are no submissions."""


def _with_proposals(study: StudyFolder, queue: Queue) -> Iterator[LockedRun]:
    """The runs left, and where a sampler learns from them, one trial after the other."""
    yield from queue.candidates()
    if study.to_propose:
        from experiments.search.propose import Proposals

        proposals = Proposals(study.path)
        while proposals.propose(1).published:
            yield from queue.candidates()


def _train(attempt: Attempt, supervise: Supervise, beat_seconds: float, judge: Judge | None) -> str:
    attempt.folder.mkdir(parents=True, exist_ok=True)
    parent, life = os.pipe()
    # The engine stops where its parent's pipe ends: so a thread of this process can end a run.
    watch = _Watch(attempt, beat_seconds, judge, lambda: os.close(life))
    beats = threading.Thread(target=watch.watch, daemon=True)
    beats.start()
    try:
        status = engine.train(attempt.arguments(parent))
    except BaseException:
        settle(attempt, Exit(engine.FAILED), supervise)
        raise  # that is what this launcher is for: the error arrives where the debugger is
    finally:
        watch.done.set()
        beats.join()
        os.close(parent)
    settled = settle(attempt, Exit(status, "interrupted" if status == engine.INTERRUPTED else ""), supervise)
    if judge is not None:
        with contextlib.suppress(UserError, OSError):
            judge.conclude(attempt.run)
    return settled.ending


@dataclass
class _Watch:
    """What a worker does beside its children, here beside the one run: beat, and let a pruner end it."""

    attempt: Attempt
    beat_seconds: float
    judge: Judge | None
    end: Callable[[], None]

    def __post_init__(self) -> None:
        self.done = threading.Event()

    def watch(self) -> None:
        """Until the run is over. `end` is called once in any case, at the latest then."""
        due = time.monotonic() + self.beat_seconds
        while not self.done.wait(LOOK_SECONDS):
            if self._is_pruned():
                break
            if time.monotonic() >= due:
                due = time.monotonic() + self.beat_seconds
                try:
                    lease.beat(self.attempt.lease)
                except LeaseLost:
                    break
                except OSError:  # out of reach for a while
                    continue
        self.end()
        self._beat_on()

    def _beat_on(self) -> None:
        """A run that was told to end still has a checkpoint to save."""
        while not self.done.wait(self.beat_seconds):
            with contextlib.suppress(LeaseLost, OSError):
                lease.beat(self.attempt.lease)

    def _is_pruned(self) -> bool:
        try:
            return self.judge is not None and self.judge.ends(self.attempt.run, self.attempt.lease.generation)
        except (UserError, OSError):  # a damaged or full folder: the run goes on, and its end will say what is wrong
            return False


class Finished:
    """Workers that have already ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def poll(self) -> int | None:
        return self._status

    def wait(self, seconds: float) -> int | None:
        return self._status

    def stop(self) -> None:
        """Nothing is left to stop."""

    def kill(self) -> None:
        """Nothing is left to kill."""

    def last_words(self) -> list[str]:
        return []
