"""The `inprocess` launcher: one run after another in this very process, for a debugger or a traceback on the screen."""

import threading
from pathlib import Path

from experiments import engine, lease
from experiments.attempt import Attempt, claim, settle
from experiments.launchers.base import Job, available_cores
from experiments.launchers.submitted import Submission
from experiments.lease import Claimant, LeaseLost
from experiments.outcomes import Exit
from experiments.queue import Queue
from experiments.store import StudyFolder
from experiments.supervise import Supervise, check_supervise


class InProcess:
    """Trains when started, and returns when nothing is left to do."""

    def start(self, folder: Path, job: Job) -> "Finished":
        study = StudyFolder(folder)
        supervise = check_supervise(study.lock.supervise, str(folder))
        queue, claimant, failed = Queue(study, job.retry_failed), Claimant(), 0
        for run in queue.candidates():
            ending = "retry"
            while ending == "retry" and queue.wants(run):
                attempt = claim(study, run, claimant, available_cores())
                ending = _train(attempt, supervise) if attempt is not None else ""
            if ending == "interrupted":
                return Finished(engine.INTERRUPTED)
            failed += ending == "failed"
        return Finished(engine.FAILED if failed else engine.COMPLETED)

    def alive(self, submission: Submission) -> int | None:
        """Its workers end with the driver: there are no submissions."""
        return None

    def cancel(self, submission: Submission) -> None:
        """Its workers end with the driver: there are no submissions."""


def _train(attempt: Attempt, supervise: Supervise) -> str:
    attempt.folder.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    beats = threading.Thread(target=_beat_until, args=(done, attempt), daemon=True)
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


def _beat_until(done: threading.Event, attempt: Attempt) -> None:
    while not done.wait(lease.BEAT_SECONDS):
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
