"""What the `slurm` launcher asks of Slurm's own programs, and how it reads their answers.

`sacct` is asked last and may fail: many clusters, and all without an accounting database, have nothing to say there.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.launchers.slurm_requeue import fields_of
from nanogpt.config import UserError, did_you_mean

TIMEOUT_SECONDS = 60.0
DEFAULT_MAX_ARRAY = 1001  # Slurm's own default for MaxArraySize
_JOB = re.compile(r"(\d+)(?:;(\S+))?")
_SIZE_IN_PARAMETERS = re.compile(r"\bmax_array_tasks=(\d+)")


@dataclass(frozen=True)
class Answer:
    """What a program of Slurm's answered. `status` is 127 where it is not installed, 124 where it hung."""

    status: int
    text: str
    error: str

    @property
    def complaint(self) -> str:
        """The program's own message in one line."""
        lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in self.error.splitlines()]
        return "; ".join(filter(None, lines)) or f"exit status {self.status}"


@dataclass(frozen=True)
class Task:
    """A task of a job array that Slurm still knows: its state, and why it waits."""

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """A task that has ended: in which state, with which exit status, or minus the signal."""

    name: str
    state: str
    exit_status: int


def ask(*command: str) -> Answer:
    """Run one of Slurm's programs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=_client_environment()
        )
    except FileNotFoundError:
        return Answer(127, "", f"no {command[0]} on this machine")
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{command[0]} gave no answer within {TIMEOUT_SECONDS:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


def _client_environment() -> dict[str, str]:
    """Without what changes the programs' answers (SQUEUE_STATES), and without the job that this driver may run in."""
    unwanted = ("SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_")
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(unwanted)}


def check_sbatch() -> None:
    """Raises UserError where jobs cannot be submitted from."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "launcher: slurm: no sbatch on this machine: start the study on a login node, or choose `launcher: local`"
        )


def submit(script: Path) -> str:
    """Hand a script to sbatch; returns the job's number. Raises UserError with Slurm's own message."""
    check_sbatch()
    answer = ask("sbatch", "--parsable", str(script))
    # A site's prolog may print lines of its own.
    found = [job for line in answer.text.splitlines() if (job := _JOB.fullmatch(line.strip()))]
    if answer.status or not found:
        raise UserError(f"launcher: slurm: sbatch refuses the workers: {answer.complaint}{_known_partitions(answer)}")
    return found[-1][1]


def _known_partitions(answer: Answer) -> str:
    asked = re.search(r"invalid partition specified: (\S+)", answer.error)
    known = ask("sinfo", "--noheader", "--format=%R").text.split() if asked else []
    return did_you_mean(asked[1], known) if asked and known else ""


def max_array_size() -> int:
    """The most tasks that one array may have here."""
    config = ask("scontrol", "show", "config").text
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    sizes = [int(size[1])] if size else [DEFAULT_MAX_ARRAY]
    parameters = re.search(r"^SchedulerParameters\s*=\s*(.*)$", config, re.MULTILINE)
    sizes += [int(found) for found in _SIZE_IN_PARAMETERS.findall(parameters[1] if parameters else "")]
    # An index must be below MaxArraySize, and zero is one of them. A site without arrays still takes one task each.
    return max(1, min(sizes))


def living(jobs: Sequence[str]) -> list[Task] | None:
    """The pending and running tasks of jobs, a line for each task; None when Slurm gives no answer."""
    answer = ask("squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", "--format=%i|%T|%r")
    if answer.status:
        # Of a single job that is over and forgotten, squeue says this; of several, it leaves them out.
        return [] if "Invalid job id" in answer.error else None
    return parse_queue(answer.text)


def parse_queue(text: str) -> list[Task]:
    """The lines of squeue in the form `task|state|reason`."""
    rows = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
    return [Task(name.strip(), state.strip(), reason.strip()) for name, state, reason in rows]


def ended(jobs: Sequence[str]) -> list[Ended]:
    """How the tasks of jobs ended, of those that the controller, or else the accounting database, remembers."""
    found: list[Ended] = []
    for job in jobs:
        answer = ask("scontrol", "--oneliner", "show", "job", job)
        if answer.status == 0:
            found += parse_jobs(answer.text)
            continue
        # The controller forgets a job after MinJobAge, five minutes by default.
        answer = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobID,State,ExitCode"
        )
        found += parse_accounts(answer.text) if answer.status == 0 else []
    return found


def parse_jobs(text: str) -> list[Ended]:
    """The lines of `scontrol --oneliner show job`, which names an array's tasks one by one once they have started."""
    rows = [fields_of(line) for line in text.splitlines() if line.startswith("JobId=")]
    return [Ended(_task_name(row), row.get("JobState", ""), _exit_status(row.get("ExitCode", ""))) for row in rows]


def _task_name(row: dict[str, str]) -> str:
    if "ArrayJobId" not in row:
        return row["JobId"]
    return f"{row['ArrayJobId']}_{row.get('ArrayTaskId', '')}"


def parse_accounts(text: str) -> list[Ended]:
    """The lines of `sacct --parsable2` in the form `task|state|exit status`; of `CANCELLED by 0` the first word."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [Ended(name, state.split()[0] if state else "", _exit_status(status)) for name, state, status in rows]


def _exit_status(text: str) -> int:
    """`status:signal` as one number, as Python counts a process's end."""
    status, _, number = text.partition(":")
    if number.isdigit() and int(number):
        return -int(number)
    return int(status) if status.isdigit() else 0


def cancel(jobs: Sequence[str], *options: str) -> Answer:
    """Ask Slurm to end jobs. Those that are over already are no error."""
    return ask("scancel", "--quiet", *options, *jobs)
