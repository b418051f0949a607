"""The `inprocess` launcher: one run after another in this very process, for a debugger or a traceback on the screen."""

import threading
from collections.abc import Iterator
from pathlib import Path

from experiments import engine, lease
from experiments.attempt import Attempt, claim, settle
from experiments.launchers.base import Job, available_cores
from experiments.launchers.submitted import Submission
from experiments.lease import Claimant, LeaseLost
from experiments.lock import LockedRun
from experiments.outcomes import Exit
from experiments.queue import Queue
from experiments.store import StudyFolder
from experiments.supervise import Supervise, check_supervise


class InProcess:
    """Trains when started, and returns when nothing is left to do."""

    def check(self, job: Job) -> None:
        """This very machine can always have a worker."""

    def start(self, folder: Path, job: Job) -> "Finished":
        study = StudyFolder(folder)
        supervise = check_supervise(study.lock.supervise, str(folder))
        claimant, failed = Claimant(supervise.lease), 0
        queue = Queue(study, job.retry_failed, claimant=claimant)
        for run in _with_proposals(study, queue):
            ending = "retry"
            while ending == "retry" and queue.wants(run):
                attempt = claim(study, run, claimant, available_cores())
                ending = _train(attempt, supervise, claimant.beat_seconds) if attempt is not None else ""
            if ending == "interrupted":
                return Finished(engine.INTERRUPTED)
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


def _train(attempt: Attempt, supervise: Supervise, beat_seconds: float) -> str:
    attempt.folder.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    beats = threading.Thread(target=_beat_until, args=(done, attempt, beat_seconds), daemon=True)
    beats.start()
    try:
        status = engine.train(attempt.arguments(None))
    except BaseException:
        settle(attempt, Exit(engine.FAILED), supervise)
        raise  # that is what this launcher is for: the error arrives where the debugger is
    finally:
        done.set()
        beats.join()
    return settle(attempt, Exit(status, "interrupted" if status == engine.INTERRUPTED else ""), supervise).ending


def _beat_until(done: threading.Event, attempt: Attempt, seconds: float) -> None:
    while not done.wait(seconds):
        try:
            lease.beat(attempt.lease)
        except LeaseLost:
            return


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
