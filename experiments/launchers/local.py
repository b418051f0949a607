"""The `local` launcher: one worker on this machine, its slots from GPUs or cores, the cores shared out among them."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from experiments.launchers.base import Job
from experiments.launchers.settings import LocalSettings
from experiments.launchers.slots import study_slots
from experiments.launchers.submitted import Submission
from experiments.outcomes import log_tail
from experiments.standby import Standby
from experiments.store import StudyFolder

LOGS = "workers"


class Local:
    """Starts one `python -m experiments worker`, which forks a child per run, or starts it cold."""

    def check(self, job: Job) -> None:
        """This very machine can always have a worker."""

    def start(self, folder: Path, job: Job) -> "LocalWorkers":
        slots = study_slots(job, StudyFolder(folder))
        settings = job.settings if isinstance(job.settings, LocalSettings) else LocalSettings()
        options = {"--slots": slots.count, "--threads": slots.threads, "--isolation": settings.isolation}
        options |= {"--nproc": settings.nproc, "--slots-per-gpu": settings.slots_per_gpu}
        options |= {"--gpus-per-run": slots.gpus_per_run} if slots.gpus_per_run else {}
        flags = ["--retry-failed"] if job.retry_failed else []
        words = [str(word) for pair in options.items() for word in pair]
        standby = job.standby if job.standby is not None and job.standby.is_free else Standby(folder)
        return LocalWorkers(folder, [*words, *flags], slots.threads, standby)

    def alive(self, submission: Submission) -> int | None:
        """Its workers end with the driver: there are no submissions."""
        return None

    def cancel(self, submission: Submission) -> None:
        """Its workers end with the driver: there are no submissions."""


class LocalWorkers:
    """The worker's process, and the pipe whose end tells it that we are gone."""

    def __init__(self, folder: Path, options: list[str], threads: int, standby: Standby) -> None:
        (folder / LOGS).mkdir(exist_ok=True)
        self.log = folder.resolve() / LOGS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        self.log.touch()
        # Runs are told their threads by their configs; this is for what else they may load.
        recruit = standby.order([str(folder.resolve()), *options], self.log, {"OMP_NUM_THREADS": str(threads)})
        self._process, self._life = recruit.process, recruit.life

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None:
            self._close()
        return status

    def stop(self) -> None:
        self._close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The worker goes; its children see their pipe end and stop at the next step."""
        self._close()
        self._process.kill()

    def wait(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.poll()

    def last_words(self) -> list[str]:
        return log_tail(self.log)

    def _close(self) -> None:
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
