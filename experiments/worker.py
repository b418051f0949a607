"""A worker: claim a run by a lease, train it in a child, beat, publish once, claim the next.

The worker is a fork server: it imports torch once and then only forks, so a run starts in milliseconds and a crash
takes down that run alone. It starts no threads and never computes, which is what makes forking safe.

Two pipes tie the processes together. The worker reads one from whoever started it: end of file means that the runner
is gone, so it stops. Every child reads one from the worker: end of file means that the worker is gone, so the child
saves a checkpoint and stops. A kill -9 of both therefore leaves nothing behind.

Nothing that a run, its folder or the disk does ends the worker: it says so in one line and goes on with the others.
"""

import contextlib
import gc
import os
import select
import signal
import time
from dataclasses import InitVar, dataclass, field, replace

from experiments import engine, lease, marks, policy
from experiments.attempt import Settled, claim, give_back, settle
from experiments.children import GRACE_SECONDS, Child, Nursery, Reason
from experiments.devices import GpuPool, visible_gpus
from experiments.launchers.slurm_requeue import requeue
from experiments.lease import Claimant, LeaseLost
from experiments.lock import LockedRun
from experiments.outcomes import DISK_FULL, Exit
from experiments.queue import Queue
from experiments.room import without_room
from experiments.search.at_work import SearchAtWork
from experiments.shapes import use_cache
from experiments.signals import woken_by_signals
from experiments.store import StudyFolder
from experiments.supervise import Supervise, check_supervise
from nanogpt.config import UserError, free_space, is_disk_full, os_problem

LOOK_AGAIN_SECONDS = 1.0  # between looks at runs that others hold
TICK_SECONDS = 0.5
REQUESTS_SECONDS = 2.0  # between looks for requests: a thousand workers on one file system should not ask more often
SETTLE_AGAIN_SECONDS = 5.0  # after a disk was full


@dataclass(frozen=True)
class Setup:
    """What a worker is told on its command line."""

    slots: int = 1
    threads: int = 1
    parent_fd: int | None = None
    retry_failed: bool = False
    gpus_per_run: int = 1
    slots_per_gpu: int = 1
    isolation: str = "fork"
    nproc: int = 1
    name: str = ""
    on_term: str = "exit"
    grace: float = GRACE_SECONDS


@dataclass
class Worker:
    """Trains the runs of one study in `slots` children at a time, each with `threads` threads."""

    study: StudyFolder
    setup: Setup = field(default_factory=Setup)
    given: InitVar[Claimant | None] = None  # default: this process, with the study's lease
    claimant: Claimant = field(init=False)
    children: dict[int, Child] = field(default_factory=dict)
    stopping: Reason = ""
    failed: int = 0

    def __post_init__(self, given: Claimant | None) -> None:
        self.supervise: Supervise = check_supervise(self.study.lock.supervise, str(self.study.path))
        self.claimant = given or Claimant(self.supervise.lease)
        self.queue = Queue(self.study, self.setup.retry_failed, claimant=self.claimant)
        self.search = SearchAtWork(self.study)
        self.gpus = GpuPool(visible_gpus(), self.setup.gpus_per_run, self.setup.slots_per_gpu)
        self.parent_fd = self.setup.parent_fd
        self.unsettled: list[tuple[Child, Exit]] = []
        self._disk_was_full = False
        self._stops = marks.stops(self.study.path)
        self._next_look = self._next_beat = self._next_settle = self._next_requests = 0.0

    def work(self) -> int:
        """Until nothing is left to do, or asked to stop. Returns 0, 1 when runs failed, 75 when stopped early."""
        use_cache(self.study)
        if self.setup.isolation == "fork" and self.setup.nproc == 1:
            engine.preload()
            gc.freeze()  # what is loaded now stays shared with the children, not copied by their collections
        self._life_read, self._life_write = os.pipe()
        with woken_by_signals(self._on_signal) as wake:
            self._wait(wake, 0)  # the import took seconds: is anyone still waiting for us?
            while True:
                self._reap()
                self._obey_requests()
                if self.stopping:
                    for child in self.children.values():
                        child.stop(self.stopping)
                else:
                    self._fill_slots()
                    self._search()
                if not self.children and (self.stopping or (self.queue.is_empty and not self.search.may_grow)):
                    break
                self._beat()
                self._wait(wake, TICK_SECONDS)
            self._settle_again(last=True)
        self.search.close()
        if self.stopping and (self.search.may_grow or not self.queue.is_empty):
            self._requeue()
            return engine.INTERRUPTED
        if self.search.is_broken:
            say("the child that proposes trials has died: no more are tried")
            return engine.MISTAKE
        return engine.FAILED if self.failed else engine.COMPLETED

    def _on_signal(self, number: int) -> None:
        """A signal alone comes from an engine that takes the machine; a runner closes its pipe first."""
        gone = self.parent_fd is not None and bool(select.select([self.parent_fd], [], [], 0)[0])
        by_person = gone or number == signal.SIGINT
        self.stopping = self.stopping or ("interrupted" if by_person else "preempted")

    def _obey_requests(self) -> None:
        """`cancel`, time limits, and failures that end the study."""
        for child in self.children.values():
            child.keep_time()
        if time.monotonic() < self._next_requests:
            return
        self._next_requests = time.monotonic() + REQUESTS_SECONDS
        if not self.stopping and marks.stops(self.study.path) - self._stops:
            say("cancelled: the runs save a checkpoint and end")
            self.stopping = "interrupted"
        for child in self.children.values():
            held = child.attempt.lease
            self.queue.shapes.note_progress(child.attempt.run, held.generation)
            if marks.cancel_path(held.folder, held.generation).exists():
                child.stop("interrupted")

    def _fill_slots(self) -> None:
        if len(self.children) >= self.setup.slots or time.monotonic() < self._next_look:
            return
        if self._is_stopped_by_failures():
            return
        self._leave_what_has_no_room()
        for run in self.queue.candidates():
            if len(self.children) >= self.setup.slots:
                return
            if (self.gpus.has_room or not _on_gpu(run)) and self.queue.wants(run):
                self._take(run)
        # All were looked at, and those left are held by others: no need to look all the time.
        self._next_look = time.monotonic() + LOOK_AGAIN_SECONDS

    def _search(self) -> None:
        """End what a pruner gives up, and ask for trials where slots are free."""
        for child in self.children.values():
            held = child.attempt.lease
            if child.asked_to_stop is None and self.search.ends(child.attempt.run, held.generation):
                say(f"{child.attempt.run.name}: the pruner ends it")
                child.stop("interrupted")
        if self.search.has_proposed(self.setup.slots - len(self.children)):
            self._next_look = 0.0

    def _is_stopped_by_failures(self) -> bool:
        stop = policy.study_stop(self.queue.failures, self.supervise)
        if stop is None:
            return False
        if not self.queue.is_empty:
            say(f"no further run is started: {stop[0]}: {', '.join(stop[1])}")
            self.failed += 1
            self.queue.clear()
        self.search.clear()
        return True

    def _leave_what_has_no_room(self) -> None:
        """Once the disk was full, only what fits is started: the rest would fail one by one."""
        if not self._disk_was_full and DISK_FULL not in [kind for kind, _ in self.queue.failures.values()]:
            return
        left = without_room(self.queue.waiting, self.study.path)
        for run in left:
            self.queue.drop(run)
        if left:
            say(f"{len(left)} runs are not started: {free_space(self.study.path)}")
            self.failed += 1

    def _take(self, run: LockedRun) -> None:
        """Start the run if it can be claimed."""
        if self.study.is_gone:
            self._end_with_study()
            return
        try:
            attempt = claim(self.study, run, self.claimant, self.setup.threads, self.queue.seen.get(run.id))
        except (UserError, OSError) as error:
            self._leave_alone(run, error)
            return
        if attempt is None:
            self.queue.lost_race(run)
            return
        attempt = replace(attempt, start=self.queue.branching.start(run))
        gpus = self.gpus.take() if _on_gpu(run) else None
        try:
            child = self._nursery().start(attempt, gpus)
        except OSError as error:
            self.gpus.give_back(gpus)
            give_back(attempt.lease)
            self._leave_alone(run, error)
            return
        self.queue.started(run)
        self.children[child.pid] = child
        devices = f", GPU {','.join(gpus)}" if gpus else ""
        trunk = f", on the trunk of {attempt.start.trunk.name}" if attempt.start.trunk is not None else ""
        say(f"{run.name}: attempt {attempt.lease.generation} started, pid {child.pid}{devices}{trunk}")

    def _end_with_study(self) -> None:
        """Whoever deletes a study while it runs means that."""
        if not self.queue.is_empty:
            say(f"{self.study.path}: was deleted or moved away: no further run is started")
            self.failed += 1
        self.queue.clear()
        self.search.clear()

    def _nursery(self) -> Nursery:
        # With the pipe's write end, or the worker's own parent pipe, a child would keep itself alive.
        close = [self._life_write, *self.search.descriptors, *([] if self.parent_fd is None else [self.parent_fd])]
        setup, limit = self.setup, self.supervise.time_limit
        return Nursery(self._life_read, close, setup.isolation, limit, setup.grace)

    def _leave_alone(self, run: LockedRun, error: Exception) -> None:
        say(f"{run.name}: left alone: {reason_of(error)}")
        self._disk_was_full = self._disk_was_full or is_disk_full(error)
        self.failed += 1
        self.queue.drop(run)

    def _reap(self) -> None:
        for pid, child in list(self.children.items()):
            ending = child.reap()
            if ending is not None:
                del self.children[pid]
                self.gpus.give_back(child.gpus)
                self._ended(child, ending)
        self._settle_again()

    def _ended(self, child: Child, ending: Exit) -> None:
        run = child.attempt.run
        self.queue.shapes.note_progress(run, child.attempt.lease.generation)
        try:
            settled = settle(child.attempt, ending, self.supervise)
        except (UserError, OSError) as error:
            say(f"{run.name}: ended with status {ending.status}, which cannot be recorded: {reason_of(error)}")
            self.unsettled.append((child, ending))
            self.queue.set_aside(run)
            return
        self._note(run, settled, ending)

    def _note(self, run: LockedRun, settled: Settled, ending: Exit) -> None:
        words = ", ".join(filter(None, [settled.ending, settled.detail]))
        say(f"{run.name}: {words}, exit status {ending.status}")
        if settled.ending == "failed":
            self.failed += 1
        self.queue.ended(run, settled)
        self.search.ended(run)
        self._next_look = 0.0

    def _settle_again(self, last: bool = False) -> None:
        """What could not be recorded, perhaps because the disk was full, is tried again now and then."""
        if not self.unsettled or (not last and time.monotonic() < self._next_settle):
            return
        self._next_settle = time.monotonic() + SETTLE_AGAIN_SECONDS
        waiting, self.unsettled = self.unsettled, []
        for child, ending in waiting:
            try:
                self._note(child.attempt.run, settle(child.attempt, ending, self.supervise), ending)
            except (UserError, OSError) as error:
                self.unsettled.append((child, ending))
                if last:
                    say(f"{child.attempt.run.name}: could not be recorded: {reason_of(error)}; `run` tries it again")
                    self.failed += 1
                    give_back(child.attempt.lease)

    def _beat(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + self.claimant.beat_seconds
        for child in [*self.children.values(), *(child for child, _ in self.unsettled)]:
            try:
                lease.beat(child.attempt.lease)
            except LeaseLost:
                if child.pid in self.children:
                    child.stop("interrupted")
            except OSError as error:
                say(f"{child.attempt.run.name}: cannot show that it lives: {reason_of(error)}")

    def _wait(self, wake: int, seconds: float) -> None:
        """Sleep until a child ends, a signal comes, the parent goes, or a tick has passed."""
        sources = [wake, *self.search.answers, *([] if self.parent_fd is None else [self.parent_fd])]
        ready, _, _ = select.select(sources, [], [], seconds)
        if wake in ready:
            os.read(wake, 4096)
        if self.parent_fd is not None and self.parent_fd in ready and not os.read(self.parent_fd, 4096):
            say("the process that started this worker is gone: stopping")
            self.stopping, self.parent_fd = self.stopping or "interrupted", None

    def _requeue(self) -> None:
        """Ask Slurm for this job again: a clean end inside its grace time would count as completed."""
        if self.setup.on_term == "requeue-command" and self.stopping == "preempted":
            say(requeue())


def _on_gpu(run: LockedRun) -> bool:
    return str(run.config["runtime"].get("device", "cpu")) != "cpu"


def reason_of(error: Exception) -> str:
    """An error in one line, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return os_problem(error)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def say(line: str) -> None:
    """A line of the worker's log. On a full disk a log is no reason to end."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def main(study: StudyFolder, setup: Setup) -> int:
    """`python -m experiments worker`."""
    name = setup.name or f"worker {os.getpid()}"
    say(f"{name}: {setup.slots} slots of {setup.threads} threads")
    status = Worker(study, setup).work()
    say(f"{name}: ends with status {status}")
    return status
