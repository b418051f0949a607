"""`status`, `results`, `fit` and `report`: what is there, read from a results folder alone."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.commands.failures import failures_text, left_alone_text, stop_text
from experiments.exclusions import read_exclusions
from experiments.launchers.asked import Sent, anything_queued, ask_engines
from experiments.lock import Lock, holds
from experiments.present import asked_now
from experiments.reasons import next_step, why
from experiments.results import study_folder
from experiments.room import disk_text
from experiments.store import RunState, StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

SUCCESS, CLAIM_FAILED = 0, 3
# The states in the order in which they need someone.
BY_NEED = (
    "failed", "lost", "preempted", "interrupted", "missing", "queued", "running", "drifted", "pruned", "diverged",
    "completed",
)  # fmt: skip


def folder_of(arguments: argparse.Namespace) -> StudyFolder:
    """The results folder of a study, whose lock says what its runs are: the study itself may have moved on."""
    return study_folder(arguments.study, arguments.out, arguments.size)


def status(arguments: argparse.Namespace) -> int:
    """The state of every run, from files; only whether submitted workers still wait is asked of their engine."""
    study = folder_of(arguments)
    sent = ask_engines(study.path)
    states = study.states(queued=anything_queued(sent))
    drifted = study.drifted()
    if arguments.json:
        print(json.dumps(_as_data(study, states, drifted, sent, arguments), indent=1))
        return SUCCESS
    counts = Counter(state.status for state in [*states.values(), *drifted.values()])
    ordered = sorted(counts.items(), key=lambda item: BY_NEED.index(item[0]))
    print(f"{study.lock.name}: " + (", ".join(f"{count} {name}" for name, count in ordered) or "no runs yet"))
    if arguments.why:
        _print_reasons(study, states, drifted, arguments.failed)
    elif counts.get("failed"):
        print(failures_text(study, states))
    elif arguments.failed:
        print("no run has failed")
    if not arguments.failed:
        _print_notes(study, states, sent, arguments)
    return SUCCESS


def _print_reasons(study: StudyFolder, states: dict[str, RunState], drifted: dict[str, RunState], failed: bool) -> None:
    stopped = bool(stop_text(study, states))
    names = {run.id: run.name for run in study.runs()} | {id: study.folders()[id].name for id in drifted}
    rows = [(names[id], state) for id, state in {**states, **drifted}.items() if not failed or state.status == "failed"]
    for name, state in sorted(rows, key=lambda row: BY_NEED.index(row[1].status)):
        print(f"  {name}: {state.status}: {why(state)}; on `run`: {next_step(state, stopped)}")


def _print_notes(
    study: StudyFolder, states: dict[str, RunState], sent: Sequence[Sent], arguments: argparse.Namespace
) -> None:
    if left := left_alone_text(study, states):
        print(left)
    if full := disk_text(study, states):
        print(f"{full}; make room, then `run`")
    elif stop := stop_text(study, states):
        print(f"stopped: {stop}; `retry` makes them start again")
    if study.to_propose:
        print(f"{study.to_propose} trials are still to be proposed")
    if refused := study.refused():
        print(f"{len(refused)} proposals were refused and replaced; the first: {refused[0].reason}")
    for each, alive in sent:
        words = f"{each.name}, {each.workers} workers by {each.launcher}, since {each.submitted}"
        print(f"submitted: {words}; {_alive_text(alive)}")
    excluded = read_exclusions(study.path, study.runs())
    labels = {run.id: run.label for run in study.runs()}
    for id, exclusion in excluded.items():
        print(f"left out of fits: {labels[id]} ({id}): {exclusion}")
    if has_changed(arguments.study, study.lock):
        print("the study has changed since it was last run; `plan` shows what `run` would do")


def _alive_text(alive: int | None) -> str:
    if alive is None:
        return "its launcher cannot be asked here"
    return f"{alive} wait or run" if alive else "none is left, so `run` starts others"


def _as_data(
    study: StudyFolder,
    states: dict[str, RunState],
    drifted: dict[str, RunState],
    sent: Sequence[Sent],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    stop = stop_text(study, states)
    excluded = read_exclusions(study.path, study.runs())
    rows = []
    for run in study.runs():
        row: dict[str, Any] = {"id": run.id, "label": run.label, **vars(states[run.id])}
        row |= {} if run.trial is None else {"trial": run.trial}
        if arguments.why:
            row |= {"why": why(states[run.id]), "next": next_step(states[run.id], bool(stop))}
        if run.id in excluded:
            row["excluded"] = str(excluded[run.id])
        rows.append(row)
    rows += [{"id": id, "label": study.folders()[id].name[:-13], **vars(state)} for id, state in drifted.items()]
    kept = [row for row in rows if not arguments.failed or row["status"] == "failed"]
    return {
        "study": study.lock.name,
        "folder": str(study.path),
        "stopped": stop or None,
        "submissions": [{**vars(each), "alive": alive} for each, alive in sent],
        "runs": kept,
    }


def has_changed(study: str, lock: Lock) -> bool:
    return Path(study).is_file() and not holds(lock, Study.load(study, lock.overrides, lock.size))


def results(arguments: argparse.Namespace) -> int:
    """The table of runs, the best first; with `--to`, where other tools read it."""
    from experiments.results import load, table_text

    if arguments.to is not None:
        from experiments.commands.exporting import export

        return export(folder_of(arguments), arguments)
    if stray := [flag for flag in ("file", "curves", "project", "entity") if getattr(arguments, flag)]:
        raise UserError(f"command line: --{stray[0]} belongs to --to csv, parquet or wandb")

    table = load(folder_of(arguments)).sort_values("val_loss", na_position="last")
    print(table.to_csv(index=False).rstrip() if arguments.csv else table_text(table))
    return SUCCESS


def report(arguments: argparse.Namespace) -> int:
    """The report and everything in it. A study file is asked as it is now, a results folder as it was locked."""
    from experiments.conclude import write_report

    folder = folder_of(arguments)
    written = write_report(folder, asked_now(folder, arguments.study))
    print(written.text)
    return judged(written.failed, arguments.strict)


def judged(failed: Sequence[str], strict: bool) -> int:
    """The exit status after claims were judged; what failed is named where it decides."""
    if not (strict and failed):
        return SUCCESS
    print(f"--strict: {len(failed)} claim{'s' * (len(failed) != 1)} failed: {'; '.join(failed)}", file=sys.stderr)
    return CLAIM_FAILED
