"""Running a study: lock it, start workers, watch them, collect the table. From Python, `ExperimentRunner`."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments import engine, published
from experiments.engine import INTERRUPTED, child_environment
from experiments.launchers import Job, Workers, launcher_named
from experiments.launchers.base import available_cores
from experiments.launchers.settings import chosen_launcher
from experiments.launchers.submitted import end_submission, submissions
from experiments.lock import LOCK_NAME, Drift, drifts, holds, keep_drifted, read_lock, resolve, write_lock
from experiments.planner.summary import drift_text
from experiments.progress import Observer, Plain, Progress, Snapshot
from experiments.results import check_base, check_columns
from experiments.retrying import mark_retries
from experiments.store import FINISHED, TO_DO, StudyFolder
from experiments.study import Study
from nanogpt.config import UserError
from nanogpt.record import write_atomic

if TYPE_CHECKING:
    import pandas as pd

LOOK_SECONDS = 0.5
STOP_SECONDS = 90.0
Drifted = Literal["stop", "rerun", "keep"]


@dataclass(frozen=True)
class Prepared:
    """A study ready to run: its folder with the lock it will have, which is written when it is launched."""

    study: StudyFolder
    text: str | None
    drifted: list[Drift]
    is_new: bool


def prepare(study: Study, folder: Path, drifted: Drifted = "stop", elsewhere: bool = False) -> Prepared:
    """Resolve a study for `folder`, from its lock where that still holds. Writes nothing.

    Runs that train `elsewhere` may name a device that this machine lacks.
    Raises UserError for anything wrong in the study, and for a folder that cannot be written. Drifted runs are
    reported unless `drifted` says what to do with them.
    """
    StudyFolder(folder).check_writable()
    old = read_lock(folder)
    # A lock may hold runs that were kept as they had been; to rerun those, everything is resolved again.
    if old is not None and holds(old, study) and drifted != "rerun":
        return Prepared(StudyFolder(folder, old), study.text, [], False)
    new = resolve(study, old, elsewhere)
    if new.search is not None:
        StudyFolder(folder, new).trials.refuse_others(new.search)
    check_columns(study, new.factors)
    check_base(study, new.runs)
    found = drifts(old, new, StudyFolder(folder, new).folders())
    if drifted == "keep":
        new = keep_drifted(new, found)
    former = dict(old.former) if old is not None else {}
    if drifted == "rerun":
        former |= {drift.old.id: drift.new.id for drift in found}
    now = {run.id for run in new.runs}
    new = new.model_copy(update={"former": {then: id for then, id in former.items() if then not in now}})
    return Prepared(StudyFolder(folder, new), study.text, found if drifted == "stop" else [], True)


def locked(folder: Path) -> Prepared:
    """The study of a results folder, as it was locked."""
    study = StudyFolder(folder)
    return Prepared(StudyFolder(folder, study.lock), None, [], False)


def refuse_drift(prepared: Prepared) -> None:
    """Raises UserError with the difference key by key when runs have drifted."""
    if prepared.drifted:
        count = f"{len(prepared.drifted)} run{'s' if len(prepared.drifted) > 1 else ''}"
        raise UserError(
            f"{prepared.study.path}: {count} drifted: same factors, but another id than when they were started; "
            f"choose --rerun-drifted or --keep-drifted\n{drift_text(prepared.drifted)}"
        )


class StudyRun:
    """A study at work: what `run_grid(wait=False)` returns. Runs end when this process does, and can go on later."""

    def __init__(self, prepared: Prepared, job: Job | None = None) -> None:
        self.folder = prepared.study
        self._prepared, self._job = prepared, job or Job()
        self._workers: Workers | None = None
        self._observer: Observer | None = None
        self.stopped = False

    def start(self) -> "StudyRun":
        """Write the lock and start workers, unless nothing is left to train.

        Raises UserError when the folder cannot be written, the launcher is unknown, or runs have drifted.
        """
        refuse_drift(self._prepared)
        engine.check_processes(getattr(self._job.settings, "nproc", 1))
        launcher = launcher_named(self._job.settings.kind)
        self._write_study()
        self._end_submissions()
        if self._job.retry_failed:
            # Marked here and once: a worker that starts later would take up what has failed since, again and again.
            mark_retries(self.folder)
            self._job = replace(self._job, retry_failed=False)
        published.discard_if_wrong(self.folder.path, self.folder.folders())
        # Workers that are left to an engine are joined, and not more of them submitted than there is work for.
        if self.to_do() and (self.outlives_driver or not self._is_submitted()):
            self._observer = Observer(self.folder)
            self._workers = launcher.start(self.folder.path, self._job)
        return self

    def _end_submissions(self) -> None:
        """Note which submissions are over: then what they were to train is no longer queued."""
        for submission in submissions(self.folder.path):
            with contextlib.suppress(UserError):  # an engine that cannot be asked from here may still have them
                if launcher_named(submission.launcher).alive(submission) == 0:
                    end_submission(self.folder.path, submission.name)

    def _is_submitted(self) -> bool:
        """Whether workers of this very launcher wait or work already: more would only stand in the queue."""
        sent = [each for each in submissions(self.folder.path) if each.launcher == self._job.settings.kind]
        for each in sent:
            print(f"already submitted: {each.name}, {each.workers} workers, since {each.submitted}", file=sys.stderr)
        return bool(sent)

    def _write_study(self) -> None:
        prepared, path = self._prepared, self.folder.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if prepared.text is not None and not _has_text(path / "study.yaml", prepared.text):
                write_atomic(path / "study.yaml", prepared.text)
            if prepared.is_new or not (path / LOCK_NAME).exists():
                write_lock(path, self.folder.lock)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None

    def to_do(self) -> int:
        """How many runs workers would take up now."""
        states = self.status()
        return sum(states.get(name, 0) for name in (*TO_DO, "running")) + self.folder.to_propose

    def status(self) -> dict[str, int]:
        """How many runs are in each state, read from the files."""
        counts: dict[str, int] = {}
        for state in self.folder.states().values():
            counts[state.status] = counts.get(state.status, 0) + 1
        return counts

    def progress(self) -> Snapshot:
        """The study at this moment: counts by state, what is running and how far, and the seconds left."""
        self._observer = self._observer or Observer(self.folder)
        return self._observer.look()

    @property
    def outlives_driver(self) -> bool:
        """Whether the workers go on when this process ends: then stopping only ends the watching."""
        return self._job.settings.outlives_driver

    @property
    def is_working(self) -> bool:
        return self._workers is not None and self._workers.poll() is None

    def wait(self, progress: Progress | None = None) -> dict[str, int]:
        """Until the workers end; returns the states. With `progress`, shows how it goes."""
        if self._workers is None:
            return self.status()
        status = None
        while status is None:
            began = time.monotonic()
            status = self._workers.wait(0)
            if progress is not None:
                progress.show(self.progress())
            # Thousands of runs take a while to look at: most of the time should still be theirs.
            status = self._workers.wait(max(LOOK_SECONDS, 5 * (time.monotonic() - began))) if status is None else status
        if progress is not None:
            progress.show(self.progress())
        if status not in (0, 1, INTERRUPTED):
            words = "\n  ".join(["", *self._workers.last_words()])
            print(f"the worker ended with status {status}; its last words:{words}", file=sys.stderr)
        return self.status()

    def stop(self) -> None:
        """Let the runs save a checkpoint and end, and wait for that."""
        self.stopped = True
        if self._workers is not None:
            self._workers.stop()
            self._workers.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End at once; the runs stop by themselves when they notice."""
        if self._workers is not None:
            self._workers.kill()

    def result(self) -> "pd.DataFrame":
        """The table of the study's runs as it is now."""
        from experiments.results import load

        return load(self.folder)


def _has_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def write_report(folder: Path) -> int:
    """Write the report in a child process, which prints the analysis: pandas and matplotlib stay out of this one."""
    command = [sys.executable, "-m", "experiments", "report", str(folder)]
    return subprocess.run(command, env=child_environment()).returncode


def is_complete(states: Mapping[str, int]) -> bool:
    return all(name in FINISHED for name, count in states.items() if count)


class ExperimentRunner:
    """Trains grids of models from Python, as in a notebook. Results lie in `<output_root>/<grid_name>/`."""

    def __init__(
        self, base_config_path: str | os.PathLike[str], output_root: str | os.PathLike[str] = "results"
    ) -> None:
        self.base_config_path = Path(base_config_path)
        self.output_root = Path(output_root)
        self._handles: list[StudyRun] = []

    def run_grid(
        self,
        grid_name: str,
        base_params: Mapping[str, Any] | None = None,
        grid_params: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | int | None = None,
        wait: bool = True,
        jobs: int | None = None,
        launcher: str | Mapping[str, Any] | None = None,
        retry_failed: bool = False,
        drifted: Drifted = "stop",
        supervise: Mapping[str, Any] | None = None,
    ) -> Any:
        """Train every combination of `grid_params`, with `base_params` laid over the base config.

        Keys are dotted (`model.n_layer`), unique leaf names (`n_layer`) or nanoGPT's flags (`use_rope`). Runs that are
        finished already are not trained again. `launcher` is a name, or settings with `kind`; `supervise` is that
        section of a study. Returns the table of the grid's runs, or with `wait=False` a handle with `status()`,
        `progress()`, `wait()`, `stop()` and `result()`. Raises UserError before anything starts if a run is invalid.
        """
        if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
            raise UserError(f"run_grid: jobs: expected a whole number of at least 1, got {jobs!r}")
        study = Study.from_grid(grid_name, self.base_config_path, base_params, grid_params, seeds, launcher, supervise)
        settings = chosen_launcher(study.launcher)
        prepared = prepare(study, self.output_root / grid_name, drifted, settings.elsewhere)
        job = Job(settings, jobs=jobs, retry_failed=retry_failed)
        run = StudyRun(prepared, job).start()
        self._handles.append(run)
        if not wait:
            return run
        try:
            run.wait(Plain(sys.stdout))
        except KeyboardInterrupt:
            run.stop()
            raise
        return run.result()

    def load_metrics(self, grid_name: str | None = None) -> "pd.DataFrame":
        """The table of one grid, by its exact name, or of all grids with the column `study`.

        A run belongs to a grid because the grid's lock lists it, not because of what its folder is called.
        """
        import pandas as pd

        from experiments.results import load

        if grid_name is not None:
            return load(StudyFolder(self.output_root / grid_name))
        folders = sorted(path.parent for path in self.output_root.glob(f"*/{LOCK_NAME}"))
        if not folders:
            raise UserError(f"{self.output_root}: no grid has been run here yet")
        tables = [load(StudyFolder(folder)).assign(study=folder.name) for folder in folders]
        return pd.concat(tables, ignore_index=True)


def default_jobs(jobs: int | None) -> int:
    return jobs or available_cores()
