"""The one place that knows the engine's command line: describing configs, and training in a forked child.

`NANOGPT_ENGINE` may name another module with the same command line (`MODULE describe --many`, `MODULE.main(argv)`);
the tests of the orchestrator use one that trains nothing.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt.config import UserError, os_problem

ENGINE_VARIABLE = "NANOGPT_ENGINE"
# A launcher whose workers have several nodes names its program here; it is given the module and its arguments.
TORCHRUN_VARIABLE = "NANOGPT_TORCHRUN"
COMPLETED, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 75  # exit statuses of `train`
ROOT = Path(__file__).resolve().parent.parent

# Those a worker has handlers for.
HANDLED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# A fork copies the table of the parent's pages: with huge ones it takes half the time, and its children fault less.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# libgomp's threads spin while they wait, and two runs side by side then slow each other down by 30 to 80 times.
CALM_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}


def engine_name() -> str:
    return os.environ.get(ENGINE_VARIABLE, "nanogpt")


def child_environment() -> dict[str, str]:
    """The environment of a child that must find these packages, from whatever folder or notebook we run."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def describe(configs: Sequence[Mapping[str, Any]], elsewhere: bool = False) -> list[dict[str, Any]]:
    """Resolve configs and measure their models in one child process (torch stays out of this one).

    Runs that train `elsewhere` may name a device that this machine lacks.
    Returns one mapping per config, in order; where a config cannot be resolved it is {"error": "one line"}.
    Raises UserError when the engine refuses, RuntimeError with its last words when it breaks.
    """
    if not configs:
        return []
    command = [sys.executable, "-m", engine_name(), "describe", "--many", *(["--elsewhere"] if elsewhere else [])]
    # One thread: shapes are counted here, nothing is computed.
    environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=json.dumps(list(configs)), capture_output=True, text=True, env=environment)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(last) if done.returncode == MISTAKE else RuntimeError(f"describing the runs failed: {last}")
    return json.loads(done.stdout)


def describe_here(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As `describe`, in this process: for a child that stays and is asked again and again."""
    name = engine_name()
    return importlib.import_module("nanogpt.describe" if name == "nanogpt" else name).describe_many(configs)


def preload() -> None:
    """Import torch and the trainer once, so that each forked run starts in milliseconds."""
    os.environ.update({key: os.environ.get(key, value) for key, value in CALM_THREADS.items()})
    name = "nanogpt.preload" if engine_name() == "nanogpt" else engine_name()
    getattr(importlib.import_module(name), "preload", lambda: None)()


def train_arguments(folder: Path, generation: int, fence: Path, parent_fd: int | None) -> list[str]:
    arguments = ["train", str(folder), "--attempt", str(generation), "--fence", str(fence)]
    return arguments if parent_fd is None else [*arguments, "--parent_fd", str(parent_fd)]


def train(arguments: list[str]) -> int:
    """Train in this process; returns the engine's exit status. Only a forked child or a debugging person calls this."""
    return _main()(arguments)


def _main() -> Callable[[list[str]], int]:
    if engine_name() != "nanogpt":
        return importlib.import_module(engine_name()).main
    from nanogpt.__main__ import main

    return main


def spans_nodes() -> bool:
    """Whether a run's processes lie on several nodes, where a script of the launcher starts torchrun on each."""
    return TORCHRUN_VARIABLE in os.environ


def train_command(arguments: list[str], nproc: int = 1) -> list[str]:
    """The command line of a cold start. The engine starts a run's processes itself where they are all here."""
    if nproc > 1 and spans_nodes():
        return [os.environ[TORCHRUN_VARIABLE], "-m", engine_name(), *arguments]
    return [sys.executable, "-m", engine_name(), *arguments, *(["--nproc", str(nproc)] if nproc > 1 else [])]


def spawn_training(
    arguments: list[str], log: Path, keep: Sequence[int], nproc: int = 1, variables: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a child that trains in a process group of its own, from nothing, writing to `log`. `keep` are the
    descriptors it inherits."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**child_environment(), **CALM_THREADS, **(variables or {})}
    with log.open("ab") as out:
        return subprocess.Popen(
            train_command(arguments, nproc), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
            pass_fds=tuple(keep), process_group=0,
        )  # fmt: skip


def fork_training(
    arguments: list[str], log: Path, close: Sequence[int], variables: Mapping[str, str] | None = None
) -> int:
    """Fork a child that trains in a process group of its own, writing to `log`; returns its pid.

    `variables` are set in the child before it touches a device. `close` are the descriptors the child must not hold:
    with the write end of its own parent pipe open, it would never see that the parent is gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that reached the child while it still had the worker's handlers would be lost: it waits instead.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            status = FAILED
            try:
                os.environ.update(variables or {})
                status = _in_child(arguments, log, close)
            finally:  # whatever is raised: beyond this line a child would go on as a second worker
                os._exit(status)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _in_child(arguments: list[str], log: Path, close: Sequence[int]) -> int:
    """Everything a forked child does."""
    status = FAILED
    try:
        _leave_parent(log, close)
    except OSError as error:
        print(os_problem(error, log), file=sys.stderr, flush=True)
        return status
    try:
        status = train(arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else FAILED
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log has no room: the status still counts
            stream.flush()
    return status


def _leave_parent(log: Path, close: Sequence[int]) -> None:
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    for descriptor in close:
        os.close(descriptor)
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
