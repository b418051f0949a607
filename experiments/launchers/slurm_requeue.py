"""A worker under Slurm asks for its job again before it exits, unless Slurm has ended that job already.

Why: a job that exits by itself inside the grace of a preemption, or after the warning before its time limit, counts as
COMPLETED or FAILED, and Slurm does not start it again. And why not always: `scontrol requeue` starts even a job again
that was cancelled, so `scancel` would bring back what a person wanted to be rid of. While Slurm ends a job, its state
is COMPLETING for every cause; what distinguishes the time limit is that the time is up.
"""

import os
import re
import subprocess

TIMEOUT_SECONDS = 20.0  # the grace is short
_FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=(\S*)")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")


def this_job() -> str:
    """The job, or the array's task, that this process belongs to; empty outside Slurm.

    A task is named by its array and index. It has a number of its own, too, but one task's number is the array's, and
    by that `scontrol requeue` would end and start again all of them.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def requeue() -> str:
    """Put this process's job back into Slurm's queue; returns one line that says what became of it."""
    job = this_job()
    if not job:
        return "not requeued: this is no job of Slurm's"
    shown = _scontrol("--oneliner", "show", "job", job)
    if shown.returncode:
        return f"job {job}: not requeued: {shown.stderr.strip()}"
    reason = why_not(shown.stdout)
    if reason:
        return f"job {job}: not requeued: {reason}"
    done = _scontrol("requeue", job)
    return f"job {job}: not requeued: {done.stderr.strip()}" if done.returncode else f"job {job}: requeued"


def why_not(job: str) -> str:
    """Why a job, as `scontrol --oneliner show job` prints it, should not be requeued; empty when it should be."""
    fields = fields_of(job)
    state = fields.get("JobState", "")
    if state == "RUNNING" or (state == "COMPLETING" and _is_time_up(fields)):
        return ""
    return f"it is {state}: Slurm is ending it, and starts it again by itself if it was preempted or lost its node"


def _is_time_up(fields: dict[str, str]) -> bool:
    run, limit = _seconds(fields.get("RunTime", "")), _seconds(fields.get("TimeLimit", ""))
    return run is not None and limit is not None and run >= limit


def _seconds(text: str) -> int | None:
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def fields_of(line: str) -> dict[str, str]:
    """The `Key=value` pairs of a line of scontrol's. Of values with spaces only the first word is kept."""
    return dict(_FIELD.findall(line))


def _scontrol(*words: str) -> "subprocess.CompletedProcess[str]":
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
