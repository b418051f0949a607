"""A worker's children: one process group per run, asked to stop, insisted on, and killed with all it started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from experiments import engine
from experiments.attempt import Attempt
from experiments.devices import VISIBLE
from experiments.outcomes import Exit, oom_kills

GRACE_SECONDS = 60.0  # for a last checkpoint; then the process group is killed
Reason = Literal["", "interrupted", "preempted", "timeout"]


@dataclass
class Child:
    """A child at work on an attempt. `limit` is the time that the attempt may take, `grace` what it has for a last
    checkpoint when it is asked to stop, both in seconds."""

    attempt: Attempt
    pid: int
    gpus: list[str] | None = None
    limit: float | None = None
    grace: float = GRACE_SECONDS
    process: "subprocess.Popen[bytes] | None" = None
    began: float = field(default_factory=time.monotonic)
    kills_before: int = field(default_factory=oom_kills)
    reason: Reason = ""
    asked_to_stop: float | None = None

    def stop(self, reason: Reason) -> None:
        """Ask for a last checkpoint; insist once the time for it has passed."""
        if self.asked_to_stop is None:
            self.asked_to_stop, self.reason = time.monotonic(), reason
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        elif time.monotonic() - self.asked_to_stop > self.grace:
            self.kill_group()

    def keep_time(self) -> None:
        """Stop a run that has had its time."""
        if self.reason == "timeout" or (self.limit is not None and time.monotonic() - self.began > self.limit):
            self.stop("timeout")

    def kill_group(self) -> None:
        """The run and whatever it started, such as data loaders."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> Exit | None:
        """How it ended, None while it lives. What it started goes with it."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            return None
        self.kill_group()
        code = os.waitstatus_to_exitcode(status)
        if self.process is not None:
            self.process.returncode = code  # it was waited for here: its own wait would find no such child
        killed_for_memory = code == -signal.SIGKILL and oom_kills() > self.kills_before
        return Exit(code, self.reason, killed_for_memory, self.limit)


@dataclass(frozen=True)
class Nursery:
    """How a worker starts its children: by a fork, or cold, each with its GPUs."""

    life_read: int
    close: Sequence[int]
    isolation: str = "fork"
    limit: float | None = None
    grace: float = GRACE_SECONDS

    def start(self, attempt: Attempt, gpus: list[str] | None) -> Child:
        """Raises OSError when no process can be started or its log cannot be written."""
        variables = {} if gpus is None else {VISIBLE: ",".join(gpus)}
        nproc = attempt.run.nproc
        if self.isolation == "fork" and nproc == 1:
            arguments = attempt.arguments(self.life_read)
            pid = engine.fork_training(arguments, attempt.log, self.close, variables)
            return Child(attempt, pid, gpus, self.limit, self.grace)
        # Over nodes torchrun hands no descriptors on: there the end of its process group is what ends a run.
        inherited = None if nproc > 1 and engine.spans_nodes() else self.life_read
        keep = [] if inherited is None else [inherited]
        process = engine.spawn_training(attempt.arguments(inherited), attempt.log, keep, nproc, variables)
        return Child(attempt, process.pid, gpus, self.limit, self.grace, process)
