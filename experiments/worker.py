"""A worker: claim a run by a lease, train it in a forked child, beat, publish once, claim the next.

The worker is a fork server: it imports torch once and then only forks, so a run starts in milliseconds and a crash
takes down that run alone. It starts no threads and never computes, which is what makes forking safe.

Two pipes tie the processes together. The worker reads one from whoever started it: end of file means that the runner
is gone, so it stops. Every child reads one from the worker: end of file means that the worker is gone, so the child
saves a checkpoint and stops. A kill -9 of both therefore leaves nothing behind.
"""

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from experiments import engine, lease
from experiments.attempt import Attempt, Ending, claim, may_train, settle
from experiments.lease import Claimant, LeaseLost
from experiments.lock import LockedRun
from experiments.search.at_work import SearchAtWork
from experiments.store import StudyFolder
from nanogpt.config import UserError

LOOK_AGAIN_SECONDS = 1.0  # between looks at runs that others hold
TICK_SECONDS = 0.5
STOP_GRACE_SECONDS = 60.0  # for a last checkpoint; then the process group is killed


@dataclass
class Child:
    """A forked child at work on an attempt."""

    attempt: Attempt
    pid: int
    asked_to_stop: float | None = None

    def stop(self) -> None:
        """Ask for a last checkpoint; insist once the time for it has passed."""
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        elif time.monotonic() - self.asked_to_stop > STOP_GRACE_SECONDS:
            self.kill_group()

    def kill_group(self) -> None:
        """The run and whatever it started, such as data loaders."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass
class Worker:
    """Trains the runs of one study in `slots` children at a time, each with `threads` threads."""

    study: StudyFolder
    slots: int
    threads: int
    parent_fd: int | None = None
    retry_failed: bool = False
    claimant: Claimant = field(default_factory=Claimant)
    children: dict[int, Child] = field(default_factory=dict)
    stopping: bool = False
    failed: int = 0

    def __post_init__(self) -> None:
        # Longest first: a long run started last would leave the other slots idle at the end.
        self.pending: list[LockedRun] = sorted(self.study.runs(), key=lambda run: -run.flops)
        self.retry: dict[str, int] = {}
        if self.retry_failed:
            states = self.study.states()
            self.retry = {id: state.generation for id, state in states.items() if state.status == "failed"}
        self._next_look = self._next_beat = 0.0
        self.search = SearchAtWork(self.study)

    def work(self) -> int:
        """Until nothing is left to do, or asked to stop. Returns 0, 1 when runs failed, 75 when stopped early."""
        engine.preload()
        gc.freeze()  # what is loaded now stays shared with the children instead of being copied by their collections
        self._life_read, self._life_write = os.pipe()
        with _woken_by_signals(self._on_stop) as wake:
            self._wait(wake, 0)  # the import took seconds: is anyone still waiting for us?
            while True:
                self._reap()
                if self.stopping:
                    for child in self.children.values():
                        child.stop()
                else:
                    self._fill_slots()
                    self._search()
                if not self.children and (self.stopping or not (self.pending or self.search.may_grow)):
                    break
                self._beat()
                self._wait(wake, TICK_SECONDS)
        self.search.close()
        if self.search.is_broken:
            _say("the child that proposes trials has died: no more are tried")
            return engine.MISTAKE
        if self.stopping and (self.pending or self.search.may_grow):
            return engine.INTERRUPTED
        return engine.FAILED if self.failed else engine.COMPLETED

    def _on_stop(self) -> None:
        self.stopping = True

    def _fill_slots(self) -> None:
        if len(self.children) >= self.slots or time.monotonic() < self._next_look:
            return
        self.study.folders()
        left: list[LockedRun] = []
        for index, run in enumerate(self.pending):
            if len(self.children) >= self.slots:
                left += self.pending[index:]
                break
            if self._take(run):
                left.append(run)
        else:
            # All were looked at, and those left are held by others: no need to look all the time.
            self._next_look = time.monotonic() + LOOK_AGAIN_SECONDS
        self.pending = left

    def _search(self) -> None:
        """End what a pruner has given up, and take up or ask for new trials."""
        for child in self.children.values():
            if child.asked_to_stop is None and self.search.ends(child.attempt.run, child.attempt.lease.generation):
                _say(f"{child.attempt.run.name}: pruned")
                child.stop()
        if new := self.search.new_runs(self.slots - len(self.children)):
            self.pending += new
            self._next_look = 0.0

    def _take(self, run: LockedRun) -> bool:
        """Start the run if it can be claimed. Returns whether it must be looked at again later."""
        try:
            if not may_train(self.study.folder(run), self.retry.get(run.id)):
                return False
            attempt = claim(self.study, run, self.claimant, self.threads)
        except UserError as error:
            _say(f"{run.name}: left alone: {error}")
            self.failed += 1
            return False
        if attempt is not None:
            self._start(attempt)
        return attempt is None

    def _start(self, attempt: Attempt) -> None:
        # With the pipe's write end, or the worker's own parent pipe, a child would keep itself alive.
        close = [self._life_write, *self.search.descriptors, *([] if self.parent_fd is None else [self.parent_fd])]
        pid = engine.fork_training(attempt.arguments(self._life_read), attempt.log, close)
        self.children[pid] = Child(attempt, pid)
        _say(f"{attempt.run.name}: attempt {attempt.lease.generation} started, pid {pid}")

    def _reap(self) -> None:
        for pid, child in list(self.children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.children[pid]
                child.kill_group()
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, exit_status: int) -> None:
        ending: Ending = settle(child.attempt, exit_status, stopping=child.asked_to_stop is not None)
        _say(f"{child.attempt.run.name}: {ending}, exit status {exit_status}")
        self.failed += ending == "failed"
        self.search.ended(child.attempt.run)
        if ending in ("interrupted", "superseded"):
            self.pending.insert(0, child.attempt.run)
        self._next_look = 0.0

    def _beat(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + lease.BEAT_SECONDS
        for child in self.children.values():
            try:
                lease.beat(child.attempt.lease)
            except LeaseLost:
                child.stop()

    def _wait(self, wake: int, seconds: float) -> None:
        """Sleep until a child ends, a signal comes, the parent goes, or a tick has passed."""
        sources = [wake] if self.parent_fd is None else [wake, self.parent_fd]
        ready, _, _ = select.select(sources, [], [], seconds)
        if wake in ready:
            os.read(wake, 4096)
        if self.parent_fd is not None and self.parent_fd in ready and not os.read(self.parent_fd, 4096):
            _say("the process that started this worker is gone: stopping")
            self.stopping, self.parent_fd = True, None


@contextlib.contextmanager
def _woken_by_signals(on_stop: Callable[[], None]) -> Iterator[int]:
    """A descriptor that becomes readable when a child ends or a stop is asked for; the latter also calls `on_stop`."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    handlers: dict[int, Callable[..., None]] = {
        signal.SIGCHLD: lambda *_: None,
        signal.SIGTERM: lambda *_: on_stop(),
        signal.SIGINT: lambda *_: on_stop(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def main(folder: Path, slots: int, threads: int, parent_fd: int | None, retry_failed: bool) -> int:
    """`python -m experiments worker`."""
    _say(f"worker {os.getpid()}: {slots} slots of {threads} threads")
    status = Worker(StudyFolder(folder), slots, threads, parent_fd, retry_failed).work()
    _say(f"worker {os.getpid()}: ends with status {status}")
    return status
