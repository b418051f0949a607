"""Asking for another attempt at failed runs: marks beside their leases, which any worker then follows."""

from collections.abc import Sequence
from pathlib import Path

from experiments import marks, published
from experiments.selection import find_runs
from experiments.store import RunState, StudyFolder
from nanogpt.config import UserError, os_reason


def mark_retries(
    study: StudyFolder, ids: Sequence[str] = (), kind: str | None = None, retry: marks.Retry | None = None
) -> int:
    """Ask for another attempt at the failed runs meant; all of them when neither ids nor a class are given."""
    states = study.states()
    meant = find_runs(study.runs(), ids) if ids else study.runs()
    for run in meant if ids else ():
        if states[run.id].status != "failed":
            raise UserError(f"command line: {run.label}: is {states[run.id].status}; only a failed run is tried again")
    chosen = [run for run in meant if states[run.id].status == "failed" and kind in (None, states[run.id].kind)]
    chosen = [run for run in chosen if study.folder(run).is_dir()]  # what lies in a folder's place takes no mark
    for run in chosen:
        _mark(study.folder(run), states[run.id], retry or marks.Retry())
    if any(states[run.id].kind == "corrupt" for run in chosen):
        published.discard_if_wrong(study.path, study.folders())  # it may name a record that was set aside
    return len(chosen)


def _mark(folder: Path, state: RunState, retry: marks.Retry) -> None:
    try:
        marks.set_damaged_aside(folder)
        if state.generation:
            marks.ask_retry(folder, state.generation, retry)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None
