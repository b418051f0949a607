"""The `local` launcher: one worker on this machine with as many slots as cores, the cores shared out among them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.engine import CALM_THREADS, child_environment
from experiments.launchers.base import Job, available_cores
from experiments.launchers.submitted import Submission
from experiments.outcomes import log_tail

LOGS = "workers"


class Local:
    """Starts one `python -m experiments worker`, which forks a child per run."""

    def start(self, folder: Path, job: Job) -> "LocalWorkers":
        cores = available_cores()
        slots = job.at_a_time or cores
        return LocalWorkers(folder, slots, max(1, cores // slots), job.retry_failed)

    def alive(self, submission: Submission) -> int | None:
        """Its workers end with the driver: there are no submissions."""
        return None

    def cancel(self, submission: Submission) -> None:
        """Its workers end with the driver: there are no submissions."""


class LocalWorkers:
    """The worker's process, and the pipe whose end tells it that we are gone."""

    def __init__(self, folder: Path, slots: int, threads: int, retry_failed: bool) -> None:
        read, self._life = os.pipe()
        command = [sys.executable, "-m", "experiments", "worker", str(folder.resolve())]
        command += ["--slots", str(slots), "--threads", str(threads), "--parent-fd", str(read)]
        command += ["--retry-failed"] if retry_failed else []
        # OpenMP reads its settings when torch is loaded: later is too late.
        environment = {**child_environment(), **CALM_THREADS, "OMP_NUM_THREADS": str(threads)}
        (folder / LOGS).mkdir(exist_ok=True)
        self.log = folder / LOGS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the runner alone, which then stops the runs in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                pass_fds=(read,), start_new_session=True,
            )  # fmt: skip
        os.close(read)

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
