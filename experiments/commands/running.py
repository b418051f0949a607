"""`run`, `retry` and `worker`: what starts training, and what a person is told about it."""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator

from experiments.commands.failures import failures_text, stop_text
from experiments.commands.target import command_text, prepared_study
from experiments.launchers import Job
from experiments.launchers.settings import LocalSettings, chosen_launcher
from experiments.launchers.slots import study_slots
from experiments.planner.summary import make_plan, plan_text
from experiments.progress import for_stream
from experiments.reasons import starts_text
from experiments.results import RESULTS
from experiments.retrying import mark_retries
from experiments.runner import Prepared, StudyRun, default_jobs, is_complete, refuse_drift, write_report
from experiments.store import FINISHED, StudyFolder
from nanogpt.config import UserError

SUCCESS, FAILURE, CTRL_C = 0, 1, 130


def _show_plan(prepared: Prepared, arguments: argparse.Namespace) -> bool:
    """Print the head of the plan; returns whether anything is left to train."""
    settings = chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    made = make_plan(prepared.study, _at_a_time(Job(settings, arguments.jobs), prepared.study))
    print(plan_text(made))
    states = prepared.study.states()
    starts = starts_text(prepared.study.runs(), states)
    stop = "" if getattr(arguments, "retry_failed", False) else stop_text(prepared.study, states)
    print("\n".join(filter(None, [f"  stopped      {stop}" if stop else starts])), end="\n" if stop or starts else "")
    sys.stdout.flush()
    return bool(made.to_do)


def _at_a_time(job: Job, study: StudyFolder) -> int:
    """Runs at a time on one worker."""
    if isinstance(job.settings, LocalSettings):
        return study_slots(job, study).count
    return default_jobs(job.at_a_time)


def run(arguments: argparse.Namespace) -> int:
    """Train what is not finished, then fit and write the report."""
    if arguments.dry_run:
        from experiments.commands.planning import plan

        return plan(arguments)
    prepared = prepared_study(arguments)
    refuse_drift(prepared)
    return _train(prepared, arguments)


def _train(prepared: Prepared, arguments: argparse.Namespace) -> int:
    settings = chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    to_do = _show_plan(prepared, arguments)
    retry_failed = getattr(arguments, "retry_failed", False)
    run = StudyRun(prepared, Job(settings, arguments.jobs, retry_failed))
    with _terminable():
        try:
            run.start()
            progress = for_stream(sys.stdout)
            try:
                run.wait(progress)
            finally:
                progress.close()
        except KeyboardInterrupt:
            return _interrupted(run, arguments)
    return _finish(run, arguments, worked=to_do or retry_failed or prepared.is_new)


def _finish(run: StudyRun, arguments: argparse.Namespace, worked: bool) -> int:
    """The report, and what is left to say about runs without a result."""
    states = run.status()
    report = run.folder.path / "report.html"
    wanted = not arguments.no_report and (worked or not report.exists())
    broken = wanted and any(states.get(s) for s in ("completed", "diverged")) and write_report(run.folder.path) != 0
    to_propose, finished = run.folder.to_propose, sum(states.get(status, 0) for status in FINISHED)
    total = sum(states.values()) + to_propose
    print(f"{finished} of {total} runs are finished" + ("" if worked else "; nothing was left to do"))
    if report.exists() and not broken:
        print(f"look at {report}")
    if states.get("failed"):
        print(failures_text(run.folder), file=sys.stderr)
        print(f"failed runs wait for: {_again(arguments, 'retry')} --failed", file=sys.stderr)
    if stop := stop_text(run.folder):
        print(f"stopped: {stop}", file=sys.stderr)
    elif to_propose or not is_complete({status: count for status, count in states.items() if status != "failed"}):
        print(f"go on with: {_again(arguments)}", file=sys.stderr)
    return SUCCESS if is_complete(states) and not (broken or to_propose) else FAILURE


def _interrupted(run: StudyRun, arguments: argparse.Namespace) -> int:
    if run.outlives_driver:
        run.stop()
        return CTRL_C
    print("\nstopping: the runs save a checkpoint and end (press Ctrl-C again to end at once)", file=sys.stderr)
    try:
        run.stop()
    except KeyboardInterrupt:
        run.kill()
    print(f"interrupted; go on with: {_again(arguments)}", file=sys.stderr)
    return CTRL_C


def _again(arguments: argparse.Namespace, verb: str = "run") -> str:
    return shlex.join(command_text(arguments, verb, RESULTS))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A polite kill is treated as Ctrl-C: the runs save a checkpoint."""

    def on_terminate(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def retry(arguments: argparse.Namespace) -> int:
    """Mark failed runs to be tried again, and run the study."""
    if bool(arguments.failed or arguments.kind) == bool(arguments.ids):
        raise UserError("command line: retry: give --failed, --class CLASS, or the ids of runs")
    prepared = prepared_study(arguments)
    refuse_drift(prepared)
    if arguments.launcher is not None:
        chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    marked = mark_retries(prepared.study, arguments.ids, arguments.kind)
    print(f"{marked} run{'s' * (marked != 1)} marked to be tried again")
    return SUCCESS if arguments.mark_only else _train(prepared, arguments)


def worker(arguments: argparse.Namespace) -> int:
    """Train a results folder's runs; launchers start it."""
    from experiments.worker import Setup, main

    given = {name: getattr(arguments, name) for name in Setup.__dataclass_fields__}
    return main(StudyFolder(arguments.folder), Setup(**given))
