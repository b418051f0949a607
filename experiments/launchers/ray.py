"""The `ray` launcher: workers as tasks of a Ray cluster, which places them and starts lost ones again on other nodes.

The tasks belong to the driver: when it ends, however it ends, Ray ends them, their runs save checkpoints, and `run`
goes on later. Ray only places and restarts; runs are claimed through the leases of the shared results folder.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import lease
from experiments.attempt import log_tail
from experiments.engine import CALM_THREADS, FAILED, INTERRUPTED, ROOT
from experiments.launchers import raynode
from experiments.launchers.base import Job
from experiments.launchers.raycluster import ask_cluster, check_room, demands, explain
from experiments.launchers.raynode import NO_WORKER, Ended, Order
from experiments.launchers.settings import RaySettings
from experiments.launchers.submitted import WORKERS, Submission, driver_lives, end_submission, write_submission
from nanogpt.config import UserError

CANCEL = ".cancel"
OURS = "NANOGPT_"  # environment variables of this prefix mean the same on every node


class Ray:
    """Starts `workers` tasks on the cluster at `address`, each one worker command."""

    def __init__(self) -> None:
        self._fits: int | None = None

    def check(self, job: Job) -> None:
        """Raises UserError: no Ray, no cluster, a wrong token, resources that no node has."""
        assert isinstance(job.settings, RaySettings)
        self._fits = check_room(ask_cluster(job.settings.address), job.settings)

    def start(self, folder: Path, job: Job) -> "RayWorkers":
        """Raises UserError as `check` does, and when the cluster does not let this driver in."""
        settings = job.settings
        assert isinstance(settings, RaySettings)
        if self._fits is None:
            self.check(job)
        if self._fits is not None and self._fits < settings.workers:
            _say(f"{self._fits} of {settings.workers} workers fit into the cluster at a time; the others wait for room")
        home = folder.resolve()
        submission = _submission(home, settings)
        task = _task(settings)
        write_submission(home, submission)
        orders = [_order(home, submission, job, number) for number in range(settings.workers)]
        return RayWorkers(home, submission, [task.remote(order) for order in orders])

    def alive(self, submission: Submission) -> int | None:
        """Read from files, without Ray: workers live no longer than their driver, which beats on its record."""
        lives = driver_lives(Path(submission.handle.get("folder", "")), submission)
        if lives is None:
            return None
        return int(submission.handle.get("left", submission.workers)) if lives else 0

    def cancel(self, submission: Submission) -> None:
        """The driver, wherever it runs, sees the file, ends its workers and goes."""
        record = record_path(Path(submission.handle["folder"]), submission)
        with contextlib.suppress(FileNotFoundError):  # the study's folder is gone, and so are its workers
            record.with_suffix(CANCEL).touch()


class RayWorkers:
    """The tasks of one submission. A thread beats on its record and looks for a request to cancel it."""

    def __init__(self, folder: Path, submission: Submission, tasks: list[Any]) -> None:
        self._folder, self._submission = folder, submission
        self._tasks = {task: number for number, task in enumerate(tasks)}
        self._ended: list[Ended] = []
        self._over, self._lock = threading.Event(), threading.Lock()
        threading.Thread(target=self._beat, daemon=True, name=submission.name).start()

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, seconds: float) -> int | None:
        import ray

        with self._lock:
            waiting = list(self._tasks)
        if waiting:
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=seconds, fetch_local=False)
            self._collect(done)
        return None if self._tasks else self._status()

    def stop(self) -> None:
        self._cancel(force=False)

    def kill(self) -> None:
        """The tasks go at once; their workers see the pipe end, and stop by themselves."""
        self._cancel(force=True)

    def last_words(self) -> list[str]:
        problems = [ended["problem"] for ended in self._ended if ended["problem"]]
        return problems or log_tail(max(self._logs(), key=lambda log: log.stat().st_mtime, default=Path(os.devnull)))

    def _logs(self) -> list[Path]:
        return sorted((self._folder / WORKERS).glob(f"{self._submission.name}.*.log"))

    def _collect(self, done: list[Any]) -> None:
        with self._lock:
            new = [_ended(task) for task in done if self._tasks.pop(task, None) is not None]
        if not new:
            return
        self._ended += new
        if self._tasks:
            self._record_left()
            for ended in filter(lambda ended: ended["problem"], new):
                _say(f"{ended['problem']}; the other workers go on")
        else:
            self._over.set()
            end_submission(self._folder, self._submission.name)

    def _record_left(self) -> None:
        if not record_path(self._folder, self._submission).exists():
            return  # cancelled
        handle = {**self._submission.handle, "left": len(self._tasks)}
        write_submission(self._folder, replace(self._submission, handle=handle))

    def _status(self) -> int:
        """One for all: a node that could not work counts only when none could."""
        statuses = [ended["status"] for ended in self._ended]
        worked = [status for status in statuses if status != NO_WORKER]
        for status in (FAILED, INTERRUPTED):
            if status in worked:
                return status
        return next((status for status in worked if status), 0) if worked else NO_WORKER

    def _cancel(self, force: bool) -> None:
        import ray

        with self._lock:
            waiting = list(self._tasks)
        for task in waiting:
            with contextlib.suppress(Exception):  # it may end while we ask, which Ray counts as an error
                ray.cancel(task, force=force)

    def _beat(self) -> None:
        record = record_path(self._folder, self._submission)
        asked, due = False, 0.0
        while not self._over.wait(1.0):
            if time.monotonic() >= due:
                due = time.monotonic() + lease.STALE_SECONDS / lease.BEATS
                with contextlib.suppress(OSError):  # cancelled, so renamed already; or out of reach for a while
                    os.utime(record)
            if not asked and record.with_suffix(CANCEL).exists():
                asked = True
                self.stop()


def record_path(folder: Path, submission: Submission) -> Path:
    """The file of a submission that has not ended."""
    return folder / WORKERS / f"{submission.name}.json"


def _submission(folder: Path, settings: RaySettings) -> Submission:
    name = f"ray-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    driver = asdict(lease.this_process())
    return Submission(
        "ray", name, settings.workers, {"address": settings.address, "folder": str(folder), "driver": driver}
    )


def _order(folder: Path, submission: Submission, job: Job, number: int) -> Order:
    assert isinstance(job.settings, RaySettings)
    name = f"{submission.name}.{number}"
    cores, gpus = int(job.settings.cpus), int(job.settings.gpus)
    nproc = job.settings.nproc
    slots = job.at_a_time or max(1, (gpus if job.settings.gpus else cores) // nproc)
    threads = max(1, cores // (slots * nproc))
    arguments = ["--slots", str(slots), "--threads", str(threads), "--name", name]
    if nproc > 1:
        arguments += ["--isolation", "process", "--nproc", str(nproc), "--gpus-per-run", str(nproc)]
    environment = {key: value for key, value in os.environ.items() if key.startswith(OURS)}
    environment |= {**CALM_THREADS, "OMP_NUM_THREADS": str(threads)}
    if not job.settings.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # what was not asked for belongs to others
    return {
        "folder": str(folder),
        "record": str(record_path(folder, submission)),
        "log": str(folder / WORKERS / f"{name}.log"),
        "arguments": [*arguments, *(["--retry-failed"] if job.retry_failed else [])],
        "environment": environment,
        # An installed package is the node's own affair; a checkout may lie in the shared folder.
        "directory": os.getcwd(),
        "source": str(ROOT) if (ROOT / "pyproject.toml").exists() else None,
    }


def _task(settings: RaySettings) -> Any:
    """Ray's remote function, after connecting. Ray hands the signal handlers that we need to itself: not here."""
    import ray

    options: dict[str, Any] = {"max_retries": settings.max_retries, "scheduling_strategy": "SPREAD"}
    resources = demands(settings)
    options |= {"num_cpus": resources.pop("CPU"), "num_gpus": resources.pop("GPU", 0), **resources}
    try:
        if ray.is_initialized():
            _check_connected(settings.address)
        else:
            with _own_sigterm():
                ray.init(
                    address=settings.address, log_to_driver=False, logging_level="CRITICAL",
                    runtime_env=settings.runtime_env or None,
                )  # fmt: skip
        ray.cloudpickle.register_pickle_by_value(raynode)
        return ray.remote(**options)(raynode.work)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"launcher: ray: {_one_line(error)}") from None


def _check_connected(address: str) -> None:
    """A process is in one cluster at a time, with one runtime environment. A notebook may have chosen them before."""
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in ("auto", here):
        raise UserError(f"launcher.address: {address}, but this process is in the cluster {here}; ray.shutdown() first")


def _ended(task: Any) -> Ended:
    """How a task ended; whatever Ray says about one that brought nothing becomes its problem."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return {"status": INTERRUPTED, "host": "", "problem": ""}
    except Exception as error:
        return {"status": NO_WORKER, "host": "", "problem": _one_line(error)}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return explain(text) or f"{type(error).__name__}: {text[:400]}"


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Connecting, Ray takes SIGTERM for itself; a driver has a use of its own for it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(f"launcher: ray: {line}", file=sys.stderr)
