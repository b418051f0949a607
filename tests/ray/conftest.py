"""A real Ray cluster of two nodes on this machine, the second of which can be lost as a machine is: all at once.

The second node lives in a pid namespace of its own where that is allowed. To the leases it is another machine then,
whose processes nobody here can see, and the end of its first process is the end of them all.
"""

import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import Guard, family

ROOT = Path(__file__).resolve().parents[2]
FAKE_ENGINE = ROOT / "tests" / "experiments"
BASE = """model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}
train: {batch_size: 2, max_iters: 20, precision: fp32}
runtime: {device: cpu}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Ray where it is not installed. (`import ray` would find the folder of these tests.)"""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("ray")
        return
    for item in items:
        if item.get_closest_marker("ray") and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason='Ray is not installed: pip install "ray[default]"'))


@dataclass
class Node:
    """A node of the cluster: a `ray start --block` and everything it started."""

    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """The machine is gone: no signal that could be handled, and nothing survives."""
        for pid in reversed(family(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class RayCluster:
    """Two nodes, and the environment of a driver that may enter."""

    head: Node
    second: Node
    address: str
    environment: dict[str, str]

    def run(self, study: Path, *more: str) -> "subprocess.Popen[str]":
        """`python -m experiments run` with its results beside the study."""
        command = [sys.executable, "-m", "experiments", "run", str(study), "--out", str(study.parent), "--no-report"]
        return subprocess.Popen(
            [*command, *more], cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path may have 107 characters
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2, "RAY_ADDRESS": address,
        "RAY_TMPDIR": str(home), "RAY_USAGE_STATS_ENABLED": "0", "NANOGPT_ENGINE": "fake_engine",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FAKE_ENGINE)]),
    }  # fmt: skip
    nodes: list[Node] = []
    guard = Guard(f"RAY_TMPDIR={home}")  # a test run that is killed runs none of its own clean-up
    try:
        head = ["--head", f"--port={address.rpartition(':')[2]}", f"--ray-client-server-port={free_port()}"]
        nodes.append(_start([*head, "--include-dashboard=false", "--num-cpus=3"], environment, home / "head.log"))
        second = ["--address", address, "--num-cpus=2"]
        nodes.append(_start(second, environment, home / "second.log", alone=True))
        yield RayCluster(nodes[0], nodes[1], address, environment)
    finally:
        for node in nodes:
            node.kill()
        guard.end()
        shutil.rmtree(home, ignore_errors=True)


def _start(arguments: list[str], environment: dict[str, str], log: Path, alone: bool = False) -> Node:
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=80000000"]
    environment = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*(namespace() if alone else []), *ray, *arguments], env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
    except BaseException:
        Node(process).kill()
        raise
    return Node(process)


def namespace() -> list[str]:
    """The prefix of a command that gives it a pid namespace of its own; empty where that is not allowed."""
    for own in (["unshare", "-pf", "--mount-proc"], ["unshare", "-Urpf", "--mount-proc"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*own, "true"], capture_output=True).returncode == 0:
                return own
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def workers_of(folder: Path) -> list[int]:
    """The processes that work on a results folder: workers, their shells, and the runs they forked."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"worker" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll, with a generous limit: a loaded machine is slow, and only a hang should fail."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)
