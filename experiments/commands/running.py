"""`run`, `retry` and `worker`: what starts training, and what a person is told about it."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping

from experiments.commands.failures import failures_text, left_alone_text, stop_text
from experiments.commands.head import plan_head
from experiments.commands.target import command_text, prepared_study
from experiments.launchers import Job
from experiments.launchers.settings import LocalSettings, chosen_launcher
from experiments.launchers.slots import study_slots
from experiments.progress import for_stream
from experiments.results import RESULTS
from experiments.retrying import mark_retries
from experiments.room import disk_text
from experiments.runner import Prepared, StudyRun, default_jobs, is_complete, refuse_drift, write_report
from experiments.standby import Standby, obey
from experiments.store import FINISHED, RunState, StudyFolder, met_full_disk
from nanogpt.config import UserError

SUCCESS, FAILURE, CTRL_C = 0, 1, 130
CLAIM_FAILED = 3  # of --strict: everything was done, and a claim of the study failed


def _show_plan(prepared: Prepared, arguments: argparse.Namespace) -> bool:
    """Print the head of the plan; returns whether anything is left to train."""
    settings = chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    at_a_time = _at_a_time(Job(settings, arguments.jobs), prepared.study)
    made, text = plan_head(prepared.study, at_a_time, getattr(arguments, "retry_failed", False))
    print(text, flush=True)
    return bool(made.to_do)


def _at_a_time(job: Job, study: StudyFolder) -> int:
    """Runs at a time on one worker."""
    if isinstance(job.settings, LocalSettings):
        return study_slots(job, study).count
    return default_jobs(job.at_a_time)


def run(arguments: argparse.Namespace) -> int:
    """Train what is not finished, then fit and write the report. `arguments.standby`: a worker started ahead."""
    if arguments.dry_run:
        from experiments.commands.planning import plan

        return plan(arguments)
    if arguments.strict and arguments.no_report:
        raise UserError("command line: --strict judges the claims of a report, which --no-report leaves out")
    prepared = prepared_study(arguments)
    refuse_drift(prepared)
    return _train(prepared, _study_run(prepared, arguments, arguments.standby), arguments)


def _study_run(prepared: Prepared, arguments: argparse.Namespace, standby: Standby | None = None) -> StudyRun:
    settings = chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    return StudyRun(prepared, Job(settings, arguments.jobs, getattr(arguments, "retry_failed", False), standby))


def _train(prepared: Prepared, run: StudyRun, arguments: argparse.Namespace) -> int:
    to_do = _show_plan(prepared, arguments)
    retry_failed = getattr(arguments, "retry_failed", False)
    with _terminable():
        try:
            run.start()
            run.wait(for_stream(sys.stdout))
        except KeyboardInterrupt:
            return _interrupted(run, arguments)
    return _finish(run, arguments, worked=to_do or retry_failed or prepared.is_new)


def _finish(run: StudyRun, arguments: argparse.Namespace, worked: bool) -> int:
    """The report, and what is left to say about runs without a result."""
    if run.folder.is_gone:
        gone = "was deleted or moved away while its runs trained; they have ended"
        print(f"{run.folder.path}: {gone}. To begin anew: {_again(arguments)}", file=sys.stderr)
        return FAILURE
    states = run.status()
    report = run.folder.path / "report.html"
    strict = arguments.strict
    wanted = not arguments.no_report and (worked or strict or not report.exists())
    wanted = wanted and any(states.get(status) for status in ("completed", "diverged"))
    outcome = write_report(run.folder.path, strict) if wanted else SUCCESS
    broken = outcome not in (SUCCESS, CLAIM_FAILED)
    to_propose, finished = run.folder.to_propose, sum(states.get(status, 0) for status in FINISHED)
    total = sum(states.values()) + to_propose
    print(f"{finished} of {total} runs are finished" + ("" if worked else "; nothing was left to do"))
    now = run.folder.states()
    if report.exists() and not broken:
        print(f"look at {report}")
    if states.get("failed"):
        _tell_failures(run, now, arguments)
    if left := left_alone_text(run.folder, now):
        print(left, file=sys.stderr)
    if full := disk_text(run.folder, now):
        print(f"{full}; make room, then: {_again(arguments)}", file=sys.stderr)
    elif stop := stop_text(run.folder, now):
        print(f"stopped: {stop}", file=sys.stderr)
    elif to_propose or not is_complete({status: count for status, count in states.items() if status != "failed"}):
        print(f"go on with: {_again(arguments)}", file=sys.stderr)
    return outcome if is_complete(states) and not (broken or to_propose) else FAILURE


def _tell_failures(run: StudyRun, states: Mapping[str, RunState], arguments: argparse.Namespace) -> None:
    print(failures_text(run.folder, states), file=sys.stderr)
    if any(state.status == "failed" and not met_full_disk(state) for state in states.values()):
        print(f"failed runs wait for: {_again(arguments, 'retry')} --failed", file=sys.stderr)


def _interrupted(run: StudyRun, arguments: argparse.Namespace) -> int:
    run.interrupt()
    if run.outlives_driver:
        return CTRL_C
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
    run = _study_run(prepared, arguments)
    if not arguments.mark_only:
        run.check()
    marked = mark_retries(prepared.study, arguments.ids, arguments.kind)
    print(f"{marked} run{'s' * (marked != 1)} marked to be tried again")
    return SUCCESS if arguments.mark_only else _train(prepared, run, arguments)


def worker(arguments: argparse.Namespace) -> int:
    """Train a results folder's runs; launchers start it."""
    from experiments.__main__ import main as command
    from experiments.worker import Setup, main

    if arguments.standby:
        status = command(["worker", *obey()])
        sys.stdout.flush()
        os._exit(status)  # unloading torch takes a tenth of a second, and the driver waits for the end

    given = {name: getattr(arguments, name) for name in Setup.__dataclass_fields__}
    return main(StudyFolder(arguments.folder), Setup(**given))
