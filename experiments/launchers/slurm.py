"""The `slurm` launcher: workers as a job array that outlives the driver. Slurm places, requeues and accounts for them.

What a study's state is, is read from its folder as always; Slurm is asked only whether workers still wait or run. So
watching may end at any time (Ctrl-C), another `run` watches again, and a lost queue loses no result.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from experiments.attempt import log_tail
from experiments.engine import COMPLETED, FAILED, INTERRUPTED
from experiments.launchers import slurm_client as client
from experiments.launchers.base import Job
from experiments.launchers.slurm_script import Array, array_script, array_sizes, torchrun_script
from experiments.launchers.slurm_settings import SlurmSettings
from experiments.launchers.submitted import WORKERS, Submission, end_submission, submissions, write_submission
from experiments.store import FINISHED, StudyFolder
from nanogpt.config import UserError

KIND = "slurm"
# A short study's end should be seen soon, and the controller not be asked much by a long one.
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 1.0, 15.0
# Ended from outside: its runs have their checkpoints, and `run` goes on with them.
_OUTSIDE = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REQUEUED")


class Slurm:
    """Submits workers, as many as there is work for and none are on their way to."""

    def check(self, job: Job) -> None:
        """Raises UserError where there is no Slurm."""
        client.check_sbatch()

    def start(self, folder: Path, job: Job) -> "SlurmWorkers":
        """Raises UserError when there is no Slurm here, or it refuses the whole submission, with its own message."""
        assert isinstance(job.settings, SlurmSettings)
        # Not resolved: a link may lead to a place that only this host knows by that name.
        folder = folder.absolute()
        earlier = self._earlier(folder)
        busy = sum(count for _, count in earlier)
        wanted = _wanted(folder, job, job.settings.slots(job.jobs))
        found = [submission for submission, _ in earlier]
        for submission, count in earlier:
            _say(f"{count} workers of job {_jobs(submission)}, submitted {submission.submitted}, wait or run")
        if wanted > busy:
            array = Array(folder, job.settings, wanted - busy, job.jobs, job.retry_failed)
            found.append(_submit(array))
        elif busy:
            _say(f"no further workers are submitted: there is work for {wanted}")
        return SlurmWorkers(folder, found)

    def _earlier(self, folder: Path) -> list[tuple[Submission, int]]:
        """The submissions of which workers still wait or run; those that are over are marked as ended."""
        found = []
        for submission in _ours(folder):
            count = self.alive(submission)
            if count == 0:
                end_submission(folder, submission.name)
            else:
                # Slurm gives no answer: then they are taken to live, since more workers than needed only queue up.
                found.append((submission, submission.workers if count is None else count))
        return found

    def alive(self, submission: Submission) -> int | None:
        """How many workers Slurm still knows as waiting or running; None when it gives no answer."""
        jobs = _numbers(submission)
        tasks = client.living(jobs) if jobs else None
        return None if tasks is None else len(tasks)

    def cancel(self, submission: Submission) -> None:
        """End the workers: those that run get SIGTERM, save checkpoints, and are not requeued.

        Raises UserError when Slurm cannot be asked.
        """
        answer = client.cancel(_numbers(submission))
        if answer.status:
            raise UserError(f"launcher: slurm: scancel {_jobs(submission)}: {answer.complaint}")


def _ours(folder: Path) -> list[Submission]:
    return [submission for submission in submissions(folder) if submission.launcher == KIND]


def _numbers(submission: Submission) -> list[str]:
    """The jobs of a submission; none of a record that somebody else wrote."""
    return [str(job) for job in submission.handle.get("jobs", ())]


def _jobs(submission: Submission) -> str:
    return ", ".join(_numbers(submission))


def _say(line: str) -> None:
    print(f"slurm: {line}", flush=True)


def _wanted(folder: Path, job: Job, slots: int) -> int:
    """How many workers can be busy: not more than asked for, nor than there are runs without a result, those included
    that a search has still to propose."""
    study = StudyFolder(folder)
    states = study.states().values()
    idle = (*FINISHED, *(() if job.retry_failed else ("failed",)))
    runs = sum(state.status not in idle for state in states) + study.to_propose
    assert isinstance(job.settings, SlurmSettings)
    return min(job.settings.workers, -(-runs // slots))


def _submit(array: Array) -> Submission:
    """Write the scripts, submit them, and record what was accepted, so that a kill in between loses no worker."""
    home = array.folder / WORKERS
    home.mkdir(exist_ok=True)
    name = f"{KIND}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    torchrun = home / f"{name}-torchrun.sh"
    if array.settings.nodes > 1:
        _write(torchrun, torchrun_script(array.settings.nproc_per_node))
    most = array.settings.max_array or client.max_array_size()
    submission = Submission(KIND, name, 0, {"jobs": [], "scripts": []})
    for number, size in enumerate(array_sizes(array.tasks, most)):
        script = home / (f"{name}.sh" if not number else f"{name}-{number + 1}.sh")
        _write(script, array_script(replace(array, tasks=size), script, torchrun))
        try:
            job = client.submit(script)
        except UserError as error:
            if not submission.workers:
                for path in (script, torchrun):
                    path.unlink(missing_ok=True)
                raise
            # Such as a limit on one user's jobs: those that were accepted can do all the work.
            _say(f"{submission.workers} of {array.tasks} workers were accepted, then: {error}")
            break
        handle = {key: [*submission.handle[key], new] for key, new in (("jobs", job), ("scripts", script.name))}
        submission = replace(submission, workers=submission.workers + size, handle=handle)
        write_submission(array.folder, submission)
    _say(f"job {_jobs(submission)}: {submission.workers} workers; scripts and logs are in {home}")
    _say("they go on without this command: Ctrl-C only ends the watching")
    return submission


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@dataclass
class SlurmWorkers:
    """The workers of some submissions, watched from here. They do not need to be."""

    folder: Path
    submissions: list[Submission]
    _status: int | None = None
    _next_poll: float = 0.0
    _pause: float = FIRST_POLL_SECONDS
    _said: str = ""
    _jobs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._jobs = [job for submission in self.submissions for job in _numbers(submission)]

    def poll(self) -> int | None:
        """0 when the workers have ended in order, 75 when something outside ended them, else how they broke."""
        if self._status is None and time.monotonic() >= self._next_poll:
            self._look()
            self._next_poll = time.monotonic() + self._pause
            self._pause = min(LAST_POLL_SECONDS, 1.5 * self._pause)
        return self._status

    def _look(self) -> None:
        tasks = client.living(self._jobs) if self._jobs else []
        if tasks is None:
            self._say_once("squeue gives no answer; the workers go on, and so does the watching")
            return
        if not tasks:
            self._status = _verdict(client.ended(self._jobs))
            for submission in self.submissions:
                end_submission(self.folder, submission.name)
        elif all(task.state == "PENDING" for task in tasks):
            self._nothing_runs(tasks)

    def _nothing_runs(self, tasks: list[client.Task]) -> None:
        if all(state.status in FINISHED for state in StudyFolder(self.folder).states().values()):
            # Requeued ones, mostly: they would start, find nothing left, and end.
            client.cancel(self._jobs, "--state=PENDING")
            self._pause = FIRST_POLL_SECONDS
            return
        # Without a reason, the scheduler has not come by yet.
        reasons = Counter(task.reason for task in tasks if task.reason != "None")
        if reasons:
            waiting = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
            self._say_once(f"workers wait for their turn: {waiting}")

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self._said = line
            _say(line)

    def wait(self, seconds: float) -> int | None:
        """Look at once, and wait unless all is over."""
        if self.poll() is None and seconds > 0:
            time.sleep(seconds)
        return self._status

    def stop(self) -> None:
        """End the watching. The workers go on: they are Slurm's, and `cancel` is what ends them."""
        if self._status is None:
            self._status = INTERRUPTED
            _say(
                f"job {', '.join(self._jobs)} goes on without this command; to watch again, `run` again, and to end it:"
            )
            _say(f"  python -m experiments cancel {self.folder}    (or scancel {' '.join(self._jobs)})")

    def kill(self) -> None:
        """As `stop`: a second Ctrl-C is no reason to lose days of work on a cluster."""
        self.stop()

    def last_words(self) -> list[str]:
        """How the tasks ended, and the end of the latest log."""
        ends = Counter(f"{end.state} with status {end.exit_status}" for end in client.ended(self._jobs))
        logs = [path for job in self._jobs for path in (self.folder / WORKERS).glob(f"slurm-{job}_*.log")]
        latest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
        tail = [f"{latest}:", *log_tail(latest)] if latest is not None else ["no worker has written a log"]
        return [*(f"{count} x {end}" for end, count in ends.items()), *tail]


def _verdict(ends: list[client.Ended]) -> int:
    """One exit status for all tasks, the worst of them. A worker's own 1 says that runs failed."""
    broken = [end for end in ends if end.state not in ("COMPLETED", "COMPLETING", *_OUTSIDE)]
    strange = [end.exit_status for end in broken if end.exit_status not in (COMPLETED, FAILED, INTERRUPTED)]
    if strange:
        return strange[0]
    if any(end.state in _OUTSIDE or end.exit_status == INTERRUPTED for end in ends):
        return INTERRUPTED
    return FAILED if broken else COMPLETED
