"""Starts the processes of one run by torchrun's own launcher, and says which of them died, and of what.

The captain trains nothing. Its ranks are `python -m nanogpt train FOLDER --attempt G`, and stop when it is gone. Those
of an evaluation are started in the same way.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanogpt.commands.parser import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER
from nanogpt.config import UserError
from nanogpt.describe import Description
from nanogpt.record import Record, attempt_folder, read_record, write_record
from nanogpt.stop import watch_parent
from nanogpt.team import CAPTAIN_VARIABLE

GRACE_SECONDS = 60  # for a last checkpoint, once the ranks are asked to stop


def lead(
    description: Description,
    folder: Path,
    attempt: int,
    fence: Path | None,
    parent_fd: int | None = None,
    options: Sequence[str] = (),
) -> int:
    """Train one attempt in `runtime.nproc` processes; returns the exit status that one process would have.

    `options` are further words of the ranks' command line.

    A rank that is killed leaves no outcome, and one that fails may leave the others waiting: then the outcome that
    names it is written here. Raises UserError where there are fewer GPUs than processes.
    """
    runtime = description.config.runtime
    check_devices(runtime.device, runtime.nproc)
    words = ["train", str(folder), "--attempt", str(attempt)]
    words += [*(["--fence", str(fence)] if fence is not None else []), *options]
    failures = start_ranks(words, runtime.nproc, runtime.threads, parent_fd)
    return 0 if failures is None else _settle(description, folder, attempt, fence, failures)


def start_ranks(
    words: Sequence[str], nproc: int, threads: int | None = None, parent_fd: int | None = None
) -> Mapping[int, Any] | None:
    """Run `python -m nanogpt WORDS` in `nproc` processes that find each other, and wait for their end.

    Returns None where all went well, else what torchrun knows of each rank that failed; an empty mapping where a
    signal stopped them all.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=GRACE_SECONDS,
        event_log_handler="null",
    )
    _quieten_torchrun()
    if parent_fd is not None:
        watch_parent(parent_fd, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with _surroundings(threads, nproc):
        try:
            elastic_launch(launch, sys.executable)("-m", "nanogpt", *words)
        except ChildFailedError as error:
            return error.failures
        except SignalException:
            return {}
    return None


def check_devices(device: str, nproc: int) -> None:
    """Raises UserError when there is no GPU for each process, or one device is named for all."""
    kind, _, index = device.partition(":")
    if kind == "mps" or index:
        raise UserError(f"runtime.device: {device} is one device; with nproc {nproc} expected cuda or cpu")
    if kind == "cuda":
        import torch

        found = torch.cuda.device_count()
        if found < nproc:
            raise UserError(f"runtime.nproc: {nproc} processes want a GPU each; this machine has {found}")


def _quieten_torchrun() -> None:
    """What torchrun logs of an end is said here, in one line; what it cannot go on from, it raises."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _surroundings(threads: int | None, nproc: int) -> Iterator[None]:
    """The environment that the ranks are to inherit, put back afterwards."""
    ours = {"OMP_NUM_THREADS": str(threads or max(1, (os.cpu_count() or 1) // nproc)), CAPTAIN_VARIABLE: "1"}
    # DDP warns of unused parameters that it does not find, though another draw of the trunk leaves some out: a line of
    # C++, which no filter of Python's sees.
    ours["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    if sys.platform == "linux":
        ours["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are here, and a machine without a network cannot name itself
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _settle(
    description: Description, folder: Path, attempt: int, fence: Path | None, failures: Mapping[int, Any]
) -> int:
    """The exit status of a team that did not end well, with an outcome that says why where there is none."""
    path = attempt_folder(folder, attempt) / "outcome.json"
    outcome = read_record(path) if path.exists() else None
    if outcome is not None and outcome.status == "interrupted":
        return EXIT_INTERRUPTED
    if not failures:
        return EXIT_FAILED if outcome is not None else EXIT_INTERRUPTED
    rank, failure = _root_cause(failures)
    superseded = fence is not None and fence.exists()
    if not superseded and (failure.exitcode < 0 or (outcome is None and failure.exitcode == EXIT_FAILED)):
        error = _obituary(rank, failure)
        print(f"nanogpt: {error['message']}", file=sys.stderr)
        write_record(path, _died(description, folder, attempt, outcome, error))
    return failure.exitcode if failure.exitcode > 0 else EXIT_FAILED


def _root_cause(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """A rank that was killed comes before those that lost it; else the first to fail.

    SIGTERM is what torchrun itself sends to those that are left.
    """

    def order(item: tuple[int, Any]) -> tuple[bool, bool, float, int]:
        rank, failure = item
        return failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0, failure.timestamp, rank

    return min(failures.items(), key=order)


def _obituary(rank: int, failure: Any) -> dict[str, Any]:
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        reason = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit status {failure.exitcode}"
    last_words, traceback_tail = _last_words(failure)
    return {
        "class": "RankDied",
        "message": f"rank {rank} {reason}; the run's other processes were stopped{last_words}",
        "traceback_tail": traceback_tail,
    }


def _last_words(failure: Any) -> tuple[str, list[str]]:
    """What a rank that lost the others told torchrun: all that there is to say where none of them was killed."""
    from nanogpt.attempt import TRACEBACK_LINES

    told = failure.error_file_data.get("message")
    if not isinstance(told, dict):
        return "", []
    return f": {told['message']}", told["extraInfo"]["py_callstack"].splitlines()[-TRACEBACK_LINES:]


def explain(failures: Mapping[int, Any]) -> str:
    """One line on why the processes of an evaluation ended: a user's mistake in the words of the rank that found it."""
    mistaken = {rank: failure for rank, failure in failures.items() if failure.exitcode == EXIT_USER}
    rank, failure = _root_cause(mistaken or failures)
    told = failure.error_file_data.get("message")
    if failure.exitcode == EXIT_USER and isinstance(told, dict):
        return str(told["message"]).removeprefix(f"{UserError.__name__}: ")
    return _obituary(rank, failure)["message"]


def _died(
    description: Description, folder: Path, attempt: int, outcome: Record | None, error: dict[str, Any]
) -> Record:
    from nanogpt.attempt import failed_record

    if outcome is not None:
        return outcome.model_copy(update={"status": "failed", "error": error})
    return failed_record(description, folder, attempt, error)
