"""The results folder of a study: its run folders by id, and the state of every run, read from files alone."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments import lease
from experiments.lock import LOCK_NAME, Lock, LockedRun, read_lock
from experiments.search.search import Refused
from experiments.search.trials import TrialFiles, runs_of
from nanogpt.config import UserError
from nanogpt.configfile import dump_yaml, load_yaml
from nanogpt.record import (
    PUBLISHED,
    Record,
    attempt_folder,
    attempt_numbers,
    launch_script,
    read_published,
    read_record,
    write_atomic,
)

RUN_FOLDER = re.compile(r".*\.([0-9a-f]{12})")
CONFIG_NAME = "config.yaml"
# What `run` takes up again by itself; a failed run waits until a person asks for a retry.
TO_DO = ("missing", "interrupted", "lost")
FINISHED = PUBLISHED


@dataclass(frozen=True)
class RunState:
    """The state of one run, the attempt that tells it, and a failed run's error or a running one's host."""

    status: str
    generation: int = 0
    detail: str = ""


class StudyFolder:
    """`results/<study>`: the lock and the run folders. What another process may change is not kept in memory."""

    def __init__(self, path: str | os.PathLike[str], lock: Lock | None = None) -> None:
        self.path = Path(path)
        self._lock = lock
        self._folders: dict[str, Path] = {}
        self.trials = TrialFiles(self.path)

    @cached_property
    def lock(self) -> Lock:
        """The study's lock. Raises UserError when the folder holds none."""
        lock = self._lock or read_lock(self.path)
        if lock is None:
            raise UserError(f"{self.path}: no {LOCK_NAME} here; `python -m experiments run STUDY` makes one")
        return lock

    def check_writable(self) -> None:
        """Raises UserError when the folder cannot be made or written, before anything is computed for it."""
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise UserError(f"{self.path}: cannot be written: {nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: cannot be written: no permission for {nearest}")

    def folders(self) -> Mapping[str, Path]:
        """Run folders by id. The label before the id is a courtesy and is not looked at."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        self._folders = {found[1]: self.path / name for name in sorted(names) if (found := RUN_FOLDER.fullmatch(name))}
        return self._folders

    def folder(self, run: LockedRun) -> Path:
        """Where a run lies, or will lie."""
        known = self._folders.get(run.id)
        return known if known is not None and known.exists() else self.path / run.name

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

    def states(self) -> dict[str, RunState]:
        """The state of every run, by id."""
        folders = self.folders()
        missing = RunState("missing")
        return {run.id: state_of(folders[run.id]) if run.id in folders else missing for run in self.runs()}


def state_of(folder: Path) -> RunState:
    """The state of a run folder. Raises UserError naming the file when its record is damaged."""
    top = lease.top_generation(folder)
    published = _published(folder, top)
    if published is not None:
        return published
    state = _unpublished(folder, top)
    # A worker publishes before it gives its lease back: what looked given up may have been published meanwhile.
    return state if state.status == "running" else _published(folder, top) or state


def _published(folder: Path, top: int) -> RunState | None:
    record = published_record(folder)
    return None if record is None else RunState(record.status, top)


def _unpublished(folder: Path, top: int) -> RunState:
    if not top:
        return _without_lease(folder)
    outcome = read_record_if_there(attempt_folder(folder, top) / "outcome.json")
    if outcome is not None and outcome.status == "failed":
        return RunState("failed", top, failure(outcome))
    if lease.is_released(folder, top) or (outcome is not None and outcome.status == "interrupted"):
        return RunState("interrupted", top)
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
        return RunState("running" if lease.is_alive(holder) else "lost", top, holder.host)
    fresh = time.time() - path.stat().st_mtime < lease.STALE_SECONDS
    return RunState("running" if fresh else "lost", top, holder.host)


def published_record(folder: Path) -> Record | None:
    """The run's result, None while it has none. Raises UserError when it is damaged, no result, or another run's."""
    if not (folder / lease.RECORD_NAME).exists():
        return None
    record = read_published(folder)
    if not folder.name.endswith(f".{record.id}"):
        raise UserError(f"{folder / lease.RECORD_NAME}: is the record of run {record.id}, not of this folder's run")
    return record


def read_record_if_there(path: Path) -> Record | None:
    return read_record(path) if path.exists() else None


def failure(record: Record) -> str:
    """The error of a failed attempt in one line."""
    error = record.error or {}
    message = str(error.get("message", "")).strip().splitlines()
    return ": ".join(filter(None, [str(error.get("class", "")), message[0] if message else ""]))


def write_run_files(folder: Path, run: LockedRun, threads: int | None) -> None:
    """Write config.yaml and launch.sh. The claiming worker calls it, before the attempt starts.

    The thread count of the first attempt is kept, since another one changes the last bits of the losses.
    """
    runtime = dict(run.config["runtime"])
    if runtime.get("threads") is None:
        runtime["threads"] = _earlier_threads(folder) or threads
    comment = f"# The run {run.name}, fully resolved; `sh launch.sh` trains it.\n"
    write_atomic(folder / CONFIG_NAME, comment + dump_yaml({**run.config, "runtime": runtime}))
    write_atomic(folder / "launch.sh", launch_script(run.name))
    (folder / "launch.sh").chmod(0o755)


def _earlier_threads(folder: Path) -> int | None:
    config = folder / CONFIG_NAME
    return (load_yaml(config).data.get("runtime") or {}).get("threads") if config.exists() else None
