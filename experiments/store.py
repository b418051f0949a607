"""The results folder of a study: its run folders by id, and the state of every run, read from files alone."""

import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments import lease, marks
from experiments.launchers.submitted import awaited
from experiments.lock import LOCK_NAME, Lock, LockedRun, read_lock
from experiments.outcomes import DISK_FULL, failure, read_outcome
from experiments.search.search import Refused
from experiments.search.trials import TrialFiles, runs_of
from experiments.search.verdicts import PRUNED_NAME
from nanogpt.config import UserError, nearest_existing
from nanogpt.record import PUBLISHED, SCHEMA_VERSION, Record, attempt_numbers, read_published

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.I)  # s3://bucket, of which a Path keeps s3:/bucket
RUN_FOLDER = re.compile(r".*\.([0-9a-f]{12})")
# What `run` takes up again by itself; a failed run waits until a person asks for a retry, but for a full disk.
TO_DO = ("missing", "queued", "interrupted", "preempted", "lost")
FINISHED = PUBLISHED
# The start of a record as it is written: enough to tell a state, a hundred times faster than validating all of it.
_HEAD = re.compile(
    rb'\{\s*"schema_version": (\d+),\s*"id": "([0-9a-f]{12})",\s*"status": "(completed|diverged|pruned)"'
)


@dataclass(frozen=True)
class RunState:
    """The state of one run, the attempt that tells it, and a failed run's error or a running one's host.

    `kind` is the class of a failure (error, oom, timeout, crashed, corrupt, disk-full), also of one that is to be tried
    again; `signature` is equal for failures of one cause; `has_result` says that the attempt only needs publishing.
    """

    status: str
    generation: int = 0
    detail: str = ""
    kind: str = ""
    signature: str = ""
    has_result: bool = False


def met_full_disk(state: RunState) -> bool:
    """Whether a run failed for no fault of its own, so that `run` takes it up again without `retry`."""
    return state.status == "failed" and state.kind == DISK_FULL


class StudyFolder:
    """`results/<study>`: the lock and the run folders. What another process may change is not kept in memory."""

    def __init__(self, path: str | os.PathLike[str], lock: Lock | None = None) -> None:
        self.path = Path(path)
        self._lock = lock
        self._folders: dict[str, Path] = {}
        self.trials = TrialFiles(self.path)
        self._stamp: tuple[int, int] | None = None
        self._was_listed = False

    @cached_property
    def lock(self) -> Lock:
        """The study's lock. Raises UserError when the folder holds none."""
        self._stamp = _stamp(self.path / LOCK_NAME) if self._lock is None else None
        lock = self._lock or read_lock(self.path)
        if lock is None:
            raise UserError(f"{self.path}: no {LOCK_NAME} here; `python -m experiments run STUDY` makes one")
        return lock

    @property
    def is_gone(self) -> bool:
        """Whether the study was deleted or moved away since its lock was read, or was never written."""
        return not (self.path / LOCK_NAME).exists()

    def check_place(self) -> None:
        """Raises UserError when there cannot be a results folder, before anything is computed for it."""
        if ADDRESS.match(str(self.path)):
            raise UserError(f"{self.path}: is an address, not a folder: results need a file system that has hard links")
        nearest = nearest_existing(self.path)
        if not nearest.is_dir():
            raise UserError(f"{self.path}: cannot be written: {nearest} is not a folder")

    def check_writable(self) -> None:
        """Raises UserError when the folder cannot be made or written by us."""
        self.check_place()
        if reason := unwritable(self.path):
            raise UserError(f"{self.path}: cannot be written: {reason}")

    def folders(self) -> Mapping[str, Path]:
        """Run folders by id. The label before the id is a courtesy and is not looked at."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        self._was_listed = True
        self._folders = {found[1]: self.path / name for name in sorted(names) if (found := RUN_FOLDER.fullmatch(name))}
        return self._folders

    def find_folders(self) -> None:
        """Find the run folders, unless all of them must be where they were or where our lock says.

        Listing ten thousand folders for each run that is started would cost more than starting it. A folder of another
        name can only come from another lock, or from a person's renaming, which `folder` notices.
        """
        if not self._was_listed or self._stamp is None or self._stamp != _stamp(self.path / LOCK_NAME):
            self.folders()

    def folder(self, run: LockedRun) -> Path:
        """Where a run lies, or will lie."""
        known = self._folders.get(run.id)
        if known is not None and not known.exists():
            known = self.folders().get(run.id)
        return known or self.path / run.name

    def runs(self) -> list[LockedRun]:
        """The runs of the lock and those that a sampler has proposed since, each once."""
        known = {run.id for run in self.lock.runs}
        proposed = {run.id: run for run in runs_of(self.trials.all()) if run.id not in known}
        return [*self.lock.runs, *proposed.values()]

    def refused(self) -> list[Refused]:
        """The proposals of a search that are no runs, with their reasons."""
        later = [trial for trial in self.trials.all().values() if trial.refused is not None]
        return [
            *self.lock.refused,
            *(Refused(trial=trial.trial, settings=trial.settings, reason=str(trial.refused)) for trial in later),
        ]

    @property
    def to_propose(self) -> int:
        """How many trials of a search are still to be proposed."""
        return sum(self.trials.lacking(self.lock.search)) if self.lock.search is not None else 0

    def states(self, without: Collection[str] = (), queued: bool | None = None) -> dict[str, RunState]:
        """The state of every run but those `without`, by id. `queued` says whether submitted workers are still to come
        where that is known better than files tell it."""
        folders, queued = self.folders(), bool(awaited(self.path)) if queued is None else queued
        missing = RunState("missing")
        ids = [run.id for run in self.runs() if run.id not in without]
        states = {id: state_of(folders[id]) if id in folders else missing for id in ids}
        if not queued:
            return states
        return {id: _queued(state) if state.status in TO_DO else state for id, state in states.items()}

    def drifted(self) -> dict[str, RunState]:
        """The folders of runs whose config changed since, kept beside their successors, by their old id."""
        folders = self.folders() if self.lock.former else {}
        return {
            old: RunState("drifted", detail=f"trained anew as {new}")
            for old, new in self.lock.former.items()
            if old in folders
        }


def unwritable(path: Path) -> str:
    """Why we cannot write to a folder, or make it; empty when we can."""
    nearest = nearest_existing(path)
    if os.access(nearest, os.W_OK | os.X_OK):
        return ""
    if os.statvfs(nearest).f_flag & os.ST_RDONLY:
        return f"{nearest} is on a read-only file system"
    return f"no permission for {nearest}"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _queued(state: RunState) -> RunState:
    before = "" if state.status == "missing" else ": ".join(filter(None, [state.status, state.detail]))
    return RunState("queued", state.generation, before, state.kind)


@dataclass(frozen=True)
class Look:
    """The names in a run's folder, read in one go: what there is, and the highest generation of its leases."""

    folder: Path
    names: frozenset[str]
    top: int

    @property
    def is_published(self) -> bool:
        return lease.RECORD_NAME in self.names

    def has_mark(self, mark: str) -> bool:
        """Whether a request (`released`, `retry`, `cancel`) lies beside the highest lease."""
        return f"lease.{self.top}.{mark}" in self.names


def look(folder: Path) -> Look:
    """Raises OSError when the folder cannot be read; one that is not there is empty."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        names = []
    return Look(folder, frozenset(names), lease.highest(names))


def state_of(folder: Path) -> RunState:
    """The state of a run folder. Damage of any kind is a state, too: the other runs do not suffer from it."""
    try:
        seen = look(folder)
        if seen.is_published:
            return _published(folder, seen.top)
        state = _unpublished(seen)
        # A worker publishes before it gives its lease back: what looked given up may have been published meanwhile.
        is_over = state.status != "running" and (folder / lease.RECORD_NAME).exists()
        return _published(folder, seen.top) if is_over else state
    except OSError as error:
        return RunState("failed", 0, f"{folder}: cannot be read: {error.strerror or error}", "corrupt")
    except UserError as error:
        return RunState("failed", seen.top, str(error), "corrupt")


def _published(folder: Path, top: int) -> RunState:
    descriptor = os.open(f"{folder}/{lease.RECORD_NAME}", os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
    finally:
        os.close(descriptor)
    head = _HEAD.match(data)
    if head and int(head[1]) <= SCHEMA_VERSION and data.endswith(b"}\n") and folder.name.endswith(head[2].decode()):
        return RunState(head[3].decode(), top)
    record = published_record(folder)  # which says what is wrong with it
    assert record is not None
    return RunState(record.status, top)


def _unpublished(seen: Look) -> RunState:
    folder, top = seen.folder, seen.top
    if not top:
        return _without_lease(folder) if "attempts" in seen.names else RunState("missing")
    outcome = read_outcome(folder, top)
    error = (outcome.error if outcome is not None else None) or {}
    kind, signature = str(error.get("kind", "")), str(error.get("signature", ""))
    if outcome is not None and outcome.status == "failed":
        detail = failure(error)
        if not seen.has_mark("retry"):
            return RunState("failed", top, detail, kind or "error", signature)
        retry = marks.read_retry(folder, top) or marks.Retry()
        return RunState("interrupted", top, f"{detail}; to be tried again: {retry.why}", kind or "error", signature)
    # A run that a pruner has ended is about to be published by its worker: nobody else is to think it left.
    is_ending = PRUNED_NAME in seen.names and not seen.has_mark("released")
    if outcome is not None and outcome.status == "interrupted" and not is_ending:
        return RunState(kind if kind in ("preempted", "lost") else "interrupted", top, failure(error))
    if seen.has_mark("released"):
        has_result = outcome is not None and outcome.status in PUBLISHED
        if any(name.startswith(marks.DAMAGED) for name in seen.names):
            detail = f"the damaged {lease.RECORD_NAME} was set aside"
            return RunState("interrupted", top, detail, "corrupt", has_result=has_result)
        return RunState("interrupted", top, has_result=has_result)
    # With a finished outcome that is not published yet, its worker is about to do so.
    return _held(folder, top)


def _without_lease(folder: Path) -> RunState:
    """A person may have trained in the folder by hand, which takes no lease."""
    attempts = attempt_numbers(folder)
    return RunState("interrupted", attempts[-1]) if attempts else RunState("missing")


def _held(folder: Path, top: int) -> RunState:
    """Running or lost. For a holder elsewhere the clock decides what is shown; claims never rely on it."""
    path = lease.lease_path(folder, top)
    holder = lease.read_holder(path)
    if holder is None:
        return RunState("lost", top)
    if lease.is_local(holder):
        lives = lease.is_alive(holder)
    else:
        lives = time.time() - path.stat().st_mtime < holder.stale_seconds
    return RunState("running", top, holder.host) if lives else RunState("lost", top, f"last seen on {holder.host}")


def published_record(folder: Path) -> Record | None:
    """The run's result, None while it has none. Raises UserError when it is damaged, no result, or another run's."""
    if not (folder / lease.RECORD_NAME).exists():
        return None
    record = read_published(folder)
    if not folder.name.endswith(f".{record.id}"):
        raise UserError(f"{folder / lease.RECORD_NAME}: is the record of run {record.id}, not of this folder's run")
    return record
