"""What Ray runs on a node of its cluster: one worker command, tied to the task by a pipe.

This module is sent to the node by value and uses the standard library alone, so that it runs, and can say what is
wrong, on a node that does not see our packages or the results folder.

The worker is no direct child of the task, because Ray kills those with SIGKILL when a driver goes away. A shell stands
between; the worker sees its pipe end, lets the runs save checkpoints, gives their leases back and ends by itself. So
however the task ends - cancelled, killed, its node lost, its driver gone - nothing is orphaned.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

LOOK_SECONDS = 0.2
RECORD_SECONDS = 60.0  # a file that another host just wrote may take this long to appear in a cached listing
STOP_SECONDS = 90.0  # for last checkpoints; longer than the worker's own grace for its runs
NO_WORKER = 2  # as for any mistake of a person: this node cannot work, and says why
SHELL = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]


class Order(TypedDict):
    """What a task is asked to do. `arguments` follow `python -m experiments worker FOLDER`; `directory` is the driver's
    own, where paths of configs that are not absolute begin, if the node has it."""

    folder: str
    record: str
    log: str
    arguments: list[str]
    directory: str
    environment: dict[str, str]
    source: str | None


class Ended(TypedDict):
    """How a task ended: the worker's exit status, the host, and what kept it from working, if anything did."""

    status: int
    host: str
    problem: str


def work(order: Order) -> Ended:
    """Run a worker until it ends, or the task is cancelled. Never raises for what is wrong with the node."""
    host = socket.gethostname()
    environment = _environment(order)
    problem = _problem(order, host)
    if problem:
        return {"status": NO_WORKER, "host": host, "problem": problem}
    try:
        with open(order["log"], "ab") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} on {host}, task {os.getpid()}\n".encode())
            log.flush()
            status = _run(order, environment, log.fileno())
    except OSError as error:
        problem = f"node {host} cannot write {order['log']}: {error.strerror or error}"
        return {"status": NO_WORKER, "host": host, "problem": problem}
    return {"status": status, "host": host, "problem": ""}


def _environment(order: Order) -> dict[str, str]:
    paths = [order["source"], os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **order["environment"]}


def _problem(order: Order, host: str) -> str:
    """In one line, why this node cannot work on the study; empty when it can."""
    source = order["source"]
    if not (source and Path(source, "experiments").is_dir()) and importlib.util.find_spec("experiments") is None:
        return (
            f"node {host} has no package `experiments` in {sys.executable}: install it there, keep the checkout in a "
            f"shared folder, or name it in launcher.runtime_env"
        )
    if not os.path.isdir(order["folder"]):
        return f"node {host} does not see the results folder {order['folder']}: mount it there at the same path"
    if not os.access(order["folder"], os.W_OK | os.X_OK):
        return f"node {host} cannot write the results folder {order['folder']} as user {os.getuid()}"
    if not _appears(Path(order["record"])):
        return (
            f"node {host} has a folder {order['folder']}, but not the shared one: {order['record']} is not in it; "
            f"mount the driver's there at the same path"
        )
    return ""


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + RECORD_SECONDS
    ended = path.with_suffix(".ended.json")
    while not (path.exists() or ended.exists()):
        if time.monotonic() > deadline:
            return False
        os.listdir(path.parent.parent)  # asks a network file system again
        time.sleep(1)
    return True


def _run(order: Order, environment: dict[str, str], log: int) -> int:
    read, life = os.pipe()
    command = [sys.executable, "-m", "experiments", "worker", order["folder"], *order["arguments"]]
    directory = order["directory"] if os.path.isdir(order["directory"]) else order["folder"]
    try:
        process = subprocess.Popen(
            [*SHELL, *command, "--parent-fd", str(read)], pass_fds=(read,), env=environment, cwd=directory,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(read)
    return _wait(process, life)


def _wait(process: "subprocess.Popen[bytes]", life: int) -> int:
    """Until the worker ends. A cancelled task is interrupted as by Ctrl-C: then the worker is told, and waited for."""
    try:
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        os.close(life)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    return process.returncode
