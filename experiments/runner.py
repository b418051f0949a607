"""Running a study: lock it, start workers, watch them, collect the table. `StudyRun` is the handle of one at work."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments import glance, published
from experiments.asked import written
from experiments.engine import INTERRUPTED, child_environment
from experiments.launchers import Job, Launcher, Workers, launcher_named
from experiments.launchers.base import available_cores
from experiments.launchers.slots import sized
from experiments.launchers.submitted import end_submission, submissions
from experiments.lock import Drift, drifts, holds, keep_drifted, read_lock, resolve
from experiments.marks import Retry
from experiments.outcomes import DISK_FULL
from experiments.planner.summary import drift_text
from experiments.progress import Observer, Plain, Progress, Snapshot
from experiments.results import check_base, check_columns, check_study_claims
from experiments.retrying import mark_retries
from experiments.store import FINISHED, TO_DO, StudyFolder, met_full_disk
from experiments.study import Study
from experiments.tracking import check_trackers, tell_offline
from nanogpt.config import UserError

if TYPE_CHECKING:
    import pandas as pd

LOOK_SECONDS = 0.5
HERE = ("local", "inprocess")  # launchers that train on this very machine
STOP_SECONDS = 90.0
STOPPING = "\nstopping: the runs save a checkpoint and end (press Ctrl-C again to end at once)"
Drifted = Literal["stop", "rerun", "keep"]


@dataclass(frozen=True)
class Prepared:
    """A study ready to run: its folder with the lock it will have, which is written when it is launched."""

    study: StudyFolder
    text: str | None
    drifted: list[Drift]
    is_new: bool


def prepare(
    study: Study, folder: Path, drifted: Drifted = "stop", elsewhere: bool = False, looks: bool = False
) -> Prepared:
    """Resolve a study for `folder`, from its lock where that still holds. Writes nothing.

    Runs that train `elsewhere` may name a device that this machine lacks.
    Raises UserError for anything wrong in the study, and unless one only `looks`, for a folder that cannot be written.
    Drifted runs are reported unless `drifted` says what to do with them.
    """
    if looks:
        StudyFolder(folder).check_place()
    else:
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
    check_study_claims(study, new.runs)
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
    """A study at work: what `run_grid(wait=False)` returns. Runs end when this process does, and can go on later.

    Shown at the end of a notebook's cell it tells the states, what is running, and the time left.
    """

    def __init__(self, prepared: Prepared, job: Job | None = None) -> None:
        self.folder = prepared.study
        self._prepared, self._job = prepared, sized(job or Job(), prepared.study)
        self._launcher: Launcher | None = None
        self._workers: Workers | None = None
        # Two, so that a look at the handle takes no change away from what `wait` tells.
        self._observer: Observer | None = None
        self._told: Observer | None = None
        self.stopped = False

    def start(self) -> "StudyRun":
        """Write the lock and start workers, unless nothing is left to train.

        Raises UserError when the folder cannot be written, the launcher is unknown or cannot start any here, or runs
        have drifted; then nothing on disk has changed.
        """
        refuse_drift(self._prepared)
        if self._launcher is None and self._may_work():
            self.check()
        with written(self.folder, self._prepared.text, self._prepared.is_new):
            self._start()
        return self

    def check(self) -> None:
        """Raises UserError when this study cannot be trained from here. Writes nothing."""
        self.folder.check_writable()
        launcher = launcher_named(self._job.settings.kind)
        launcher.check(self._job)
        if self._job.settings.kind in HERE:
            check_trackers(self.folder)
        self._launcher = launcher

    def _may_work(self) -> bool:
        """Whether there is anything to train, failures that are to be tried again among it."""
        again = (*TO_DO, "running", *(("failed",) if self._job.retry_failed else ()))
        states = self.folder.states().values()
        return bool(self.folder.to_propose) or any(s.status in again or met_full_disk(s) for s in states)

    def _start(self) -> None:
        self._end_submissions()
        if self._job.retry_failed:
            # Marked here and once: a worker that starts later would take up what has failed since, again and again.
            mark_retries(self.folder)
            self._job = replace(self._job, retry_failed=False)
        # What met a full disk has no fault of its own: `run` is asked for again when there is room.
        mark_retries(self.folder, kind=DISK_FULL, retry=Retry("policy", "the disk was full"))
        published.discard_if_wrong(self.folder.path, self.folder.folders())
        # Workers that are left to an engine are joined, and not more of them submitted than there is work for.
        if self.to_do() and (self.outlives_driver or not self._is_submitted()):
            if self._job.settings.kind in HERE:
                tell_offline(self.folder)
            self._observer = Observer(self.folder)
            launcher = self._launcher or launcher_named(self._job.settings.kind)
            self._told = self._observer.twin()
            self._workers = launcher.start(self.folder.path, self._job)

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

    def resume(self) -> "StudyRun":
        """Start workers again for what is left, after a stop or an interruption; nothing while some still work."""
        if not self.is_working:
            # Written once: another command may have locked the folder anew since.
            self._prepared, self.stopped = replace(self._prepared, is_new=False, text=None), False
            self.start()
        return self

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

    @property
    def exit_status(self) -> int | None:
        """Of the workers: 0, 1 when runs failed, 75 when they were ended early; None while they work or none did."""
        return None if self._workers is None else self._workers.poll()

    def wait(self, progress: Progress | bool | None = None) -> dict[str, int]:
        """Until the workers end; returns the states. With `progress`, shows how it goes; True prints plain lines.

        Ctrl-C stops the runs, which save checkpoints and give their leases back, before KeyboardInterrupt goes on to
        the caller; a second one ends them at once. Then `resume` goes on.
        """
        shown = Plain(sys.stdout) if progress is True else progress or None
        try:
            try:
                self._watch(shown)
            finally:
                if shown is not None:
                    shown.close()
        except KeyboardInterrupt:
            self.interrupt()
            raise
        return self.status()

    def _watch(self, progress: Progress | None) -> None:
        workers, observer, status = self._workers, self._told, None
        if workers is None or observer is None:
            return
        while status is None:
            began = time.monotonic()
            status = workers.wait(0)
            if progress is not None:
                progress.show(observer.look())
            # Thousands of runs take a while to look at: most of the time should still be theirs.
            status = workers.wait(max(LOOK_SECONDS, 5 * (time.monotonic() - began))) if status is None else status
        if progress is not None:
            progress.show(observer.look())
        if status not in (0, 1, INTERRUPTED):
            words = "\n  ".join(["", *workers.last_words()])
            print(f"the worker ended with status {status}; its last words:{words}", file=sys.stderr)

    def interrupt(self) -> None:
        """What Ctrl-C means: stop as `stop` does and say so; interrupted again, end at once."""
        if self.stopped or not self.is_working:
            return
        try:
            if not self.outlives_driver:
                print(STOPPING, file=sys.stderr)
            self.stop()
        except KeyboardInterrupt:
            self.kill()

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

    def __repr__(self) -> str:
        return glance.line(self.folder.path.name, self._stage, self._glance())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return glance.html(self.folder.path.name, self._stage, self._glance(), self.folder.path)

    @property
    def _stage(self) -> str:
        if self.is_working:
            return "working"
        left = "no longer watched" if self.outlives_driver else "stopped"
        return left if self.stopped else "not working"

    def _glance(self) -> Snapshot | str:
        """The study at this moment, or in one line why it cannot be seen: showing a handle never fails."""
        try:
            return self.progress()
        except (UserError, OSError) as error:
            return str(error)

    def report(self) -> Path:
        """Write the report and its figures, and print the analysis; returns the page. Raises UserError if it fails."""
        if write_report(self.folder.path):
            raise UserError(f"{self.folder.path}: the report could not be written")
        return self.folder.path / "report.html"

    def result(self) -> "pd.DataFrame":
        """The table of the study's runs as it is now."""
        from experiments.results import load

        return load(self.folder)


def write_report(folder: Path, strict: bool = False) -> int:
    """Write the report in a child process, which prints the analysis: pandas and matplotlib stay out of this one."""
    command = [sys.executable, "-m", "experiments", "report", str(folder), *(["--strict"] if strict else [])]
    return subprocess.run(command, env=child_environment()).returncode


def is_complete(states: Mapping[str, int]) -> bool:
    return all(name in FINISHED for name, count in states.items() if count)


def default_jobs(jobs: int | None) -> int:
    return jobs or available_cores()
