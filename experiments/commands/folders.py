"""`cancel` and `forget`: what ends workers and moves runs aside. Neither deletes anything."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from experiments import marks
from experiments.commands.looking import folder_of
from experiments.launchers import launcher_named
from experiments.launchers.submitted import Submission, end_submission, submissions
from experiments.selection import find_runs
from experiments.store import StudyFolder
from nanogpt.config import UserError, os_reason

SUCCESS = 0
FORGOTTEN = "forgotten"


def cancel(arguments: argparse.Namespace) -> int:
    """Stop every worker of a study, or single runs: they save a checkpoint and can go on later."""
    study = folder_of(arguments)
    if arguments.ids:
        return _cancel_runs(study, arguments.ids)
    with _writing(study.path):
        marks.ask_stop(study.path)
    sent = submissions(study.path)
    for submission in sent:
        cancel_submission(study, submission)
    running = sum(state.status == "running" for state in study.states().values())
    print(f"{study.lock.name}: {running} running; its workers save checkpoints and end" if running
          else f"{study.lock.name}: no run is running")  # fmt: skip
    if sent:
        print(f"cancelled: {', '.join(submission.name for submission in sent)}")
    return SUCCESS


def cancel_submission(study: StudyFolder, submission: Submission) -> None:
    """Tell the engine, and note that the submission is over."""
    launcher_named(submission.launcher).cancel(submission)
    end_submission(study.path, submission.name)


def _cancel_runs(study: StudyFolder, ids: list[str]) -> int:
    states, runs = study.states(), find_runs(study.runs(), ids)
    for run in runs:
        if states[run.id].status != "running":
            raise UserError(f"command line: {run.label}: is {states[run.id].status}; only a running run is cancelled")
    for run in runs:
        folder = study.folder(run)
        with _writing(folder):
            marks.ask_cancel(folder, states[run.id].generation)
        print(f"{run.label}: asked to save a checkpoint and end; a later `run` goes on")
    return SUCCESS


def forget(arguments: argparse.Namespace) -> int:
    """Move runs' folders aside, so that they count as never started."""
    if not arguments.ids:
        raise UserError("command line: forget: give the ids of runs")
    study = folder_of(arguments)
    states, runs = study.states(), find_runs(study.runs(), arguments.ids)
    for run in runs:
        if states[run.id].status == "running":
            raise UserError(f"command line: {run.label}: is running; `cancel` it first")
        if run.id not in study.folders():
            raise UserError(f"command line: {run.label}: has no folder to forget")
    for run in runs:
        folder = study.folder(run)
        with _writing(study.path):
            target = _aside(study.path / FORGOTTEN, folder.name)
            folder.rename(target)
        print(f"{run.label}: moved to {target}")
    return SUCCESS


def _aside(home: Path, name: str) -> Path:
    home.mkdir(exist_ok=True)
    target = home / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while target.exists():
        number += 1
        target = home / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}-{number}"
    return target


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {os_reason(error, path)}") from None
