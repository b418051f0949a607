"""The command line of studies: `python -m experiments plan | run | status | results | fit | report | ...`."""

import argparse
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt.config import OneLineParser, UserError

DEFAULT_OUT = Path("results")
SUCCESS, FAILURE, MISTAKE, CTRL_C = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. A person's mistake is one line on stderr and status 2."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return CTRL_C
    except BrokenPipeError:
        # `... results STUDY | head` closes our output: no mistake, and nothing more to say.
        sys.stdout = None
        if arguments.command is not _run:
            return SUCCESS
        print("run: stopped, because whoever read its output went away; `run` again goes on", file=sys.stderr)
        return FAILURE


def console() -> None:
    """The installed command."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m experiments", description="Scaling studies: plan, run, fit, report.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    plan = _command(commands, "plan", _plan, "show what would be run and what it costs; changes nothing")
    run = _command(commands, "run", _run, "train what is not finished, then fit and write the report")
    for each in (plan, run):
        each.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting for all runs")
        each.add_argument("--jobs", type=_at_least_one, metavar="N", help="runs at a time (default: one per core)")
        each.add_argument("--launcher", metavar="NAME", help="local, slurm, ray, or inprocess; default: the study's")
    run.add_argument("--dry-run", action="store_true", help="as plan")
    run.add_argument("--retry-failed", action="store_true", help="train failed runs again, from their checkpoints")
    run.add_argument("--no-report", action="store_true", help="end after training")
    drift = run.add_mutually_exclusive_group()
    drift.add_argument("--rerun-drifted", dest="drifted", action="store_const", const="rerun", default="stop",
                       help="train runs anew whose config changed since they were started")  # fmt: skip
    drift.add_argument(
        "--keep-drifted", dest="drifted", action="store_const", const="keep", help="keep them as they are"
    )

    status = _command(commands, "status", _status, "count the runs in each state, and name those that failed")
    status.add_argument("--json", action="store_true", help="the states of all runs, for programs")
    results = _command(commands, "results", _results, "print the table of runs, the best first")
    results.add_argument("--csv", action="store_true", help="the whole table as comma-separated values")
    _command(commands, "fit", _fit, "fit the study's law and print it, measured beside predicted")
    _command(commands, "report", _report, "write report.html, report.md, table.csv and the figures")

    worker = commands.add_parser("worker", help="train a results folder's runs (launchers start it)")
    worker.set_defaults(command=_worker)
    worker.add_argument("folder", type=Path, metavar="FOLDER")
    worker.add_argument("--slots", type=_at_least_one, default=1, help="runs at a time")
    worker.add_argument("--threads", type=_at_least_one, default=1, help="threads of each run that names none")
    worker.add_argument("--parent-fd", type=int, help="descriptor whose end of file means: stop")
    worker.add_argument("--retry-failed", action="store_true")
    worker.add_argument(
        "--gpus-per-run", type=int, default=1, metavar="G", help="GPUs of each run, where there are any"
    )
    worker.add_argument("--slots-per-gpu", type=_at_least_one, default=1, metavar="K", help="runs that share a GPU")
    worker.add_argument("--isolation", choices=["fork", "process"], default="fork", help="process: cold starts")
    worker.add_argument("--nproc", type=_at_least_one, default=1, help="processes of each run")
    worker.add_argument("--name", default="", help="what the worker calls itself in its log")
    worker.add_argument("--on-term", choices=["exit", "requeue-command"], default="exit",
                        help="requeue-command: ask Slurm for this job again after a signal")  # fmt: skip
    propose = commands.add_parser("propose", help="publish the next trials of a search (workers start it)")
    propose.set_defaults(command=_propose)
    propose.add_argument("folder", type=Path, metavar="FOLDER")
    propose.add_argument("--waiting", type=_at_least_one, default=1, metavar="N", help="until N trials wait for a worker")
    propose.add_argument("--serve", action="store_true", help="N line by line from the standard input")
    schema = commands.add_parser("schema", help="print the JSON schema of study files")
    schema.set_defaults(command=_schema)
    schema.add_argument("what", choices=["study"])
    return parser


def _command(commands: Any, name: str, function: Any, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(command=function)
    parser.add_argument("study", metavar="STUDY", help="a study's YAML file, or its results folder")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER", help="root of results folders")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def _prepared(arguments: argparse.Namespace) -> Any:
    from experiments.runner import locked, prepare
    from experiments.study import Study

    path = Path(arguments.study)
    if path.is_dir():
        if arguments.set:
            raise UserError(f"command line: --set: {path} is locked; give the study's YAML file instead")
        return locked(path)
    study = Study.load(path, arguments.set)
    return prepare(study, arguments.out / study.name, getattr(arguments, "drifted", "stop"))


def _plan(arguments: argparse.Namespace) -> int:
    from experiments.launchers.settings import chosen_launcher
    from experiments.planner import drift_text, make_plan, plan_text
    from experiments.runner import default_jobs

    prepared = _prepared(arguments)
    chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    print(plan_text(make_plan(prepared.study, default_jobs(arguments.jobs))))
    if prepared.drifted:
        print(f"  drifted, so `run` will ask:\n{drift_text(prepared.drifted)}")
    return SUCCESS


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _plan(arguments)
    from experiments.launchers import Job
    from experiments.launchers.settings import chosen_launcher
    from experiments.planner import make_plan, plan_text
    from experiments.progress import for_stream
    from experiments.runner import StudyRun, default_jobs, refuse_drift

    prepared = _prepared(arguments)
    settings = chosen_launcher(prepared.study.lock.launcher, arguments.launcher)
    refuse_drift(prepared)
    plan = make_plan(prepared.study, default_jobs(arguments.jobs))
    print(plan_text(plan), flush=True)
    run = StudyRun(prepared, Job(settings, arguments.jobs, arguments.retry_failed))
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
    return _finish(run, arguments, worked=bool(plan.to_do) or arguments.retry_failed or prepared.is_new)


def _finish(run: Any, arguments: argparse.Namespace, worked: bool) -> int:
    """The report, and what is left to say about runs without a result."""
    from experiments.runner import is_complete, write_report

    states = run.status()
    has_report = (run.folder.path / "report.html").exists()
    wanted = not arguments.no_report and (worked or not has_report)
    broken = wanted and any(states.get(s) for s in ("completed", "diverged")) and write_report(run.folder.path) != 0
    finished, to_propose = sum(states.get(s, 0) for s in ("completed", "diverged", "pruned")), run.folder.to_propose
    total = sum(states.values()) + to_propose
    print(f"{finished} of {total} runs are finished" + ("" if worked else "; nothing was left to do"))
    if (run.folder.path / "report.html").exists() and not broken:
        print(f"look at {run.folder.path / 'report.html'}")
    if states.get("failed"):
        print(_failures(run.folder), file=sys.stderr)
        print(f"failed runs wait for: {_again(arguments)} --retry-failed", file=sys.stderr)
    elif to_propose or not is_complete(states):
        print(f"go on with: {_again(arguments)}", file=sys.stderr)
    return SUCCESS if is_complete(states) and not (broken or to_propose) else FAILURE


def _interrupted(run: Any, arguments: argparse.Namespace) -> int:
    print("\nstopping: the runs save a checkpoint and end (press Ctrl-C again to end at once)", file=sys.stderr)
    try:
        run.stop()
    except KeyboardInterrupt:
        run.kill()
    print(f"interrupted; go on with: {_again(arguments)}", file=sys.stderr)
    return CTRL_C


def _again(arguments: argparse.Namespace) -> str:
    """The command that goes on with this study: what defines the runs and where they lie must be the same."""
    words = ["python", "-m", "experiments", "run", arguments.study]
    words += ["--out", str(arguments.out)] if arguments.out != DEFAULT_OUT else []
    return shlex.join([*words, *(word for pair in arguments.set for word in ("--set", pair))])


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


def _failures(folder: Any) -> str:
    states = folder.states()
    failed = [(run, states[run.id]) for run in folder.runs() if states[run.id].status == "failed"]
    lines = [f"{len(failed)} failed:"]
    for run, state in failed:
        log = folder.folder(run) / "attempts" / str(state.generation) / "log.txt"
        lines += [f"  {run.name}: {state.detail}", f"    log: {log}"]
    return "\n".join(lines)


def _locked_folder(arguments: argparse.Namespace) -> Any:
    """The results folder of a study, whose lock is all that is read: the study itself may have moved on."""
    from experiments.results import study_folder

    return study_folder(arguments.study, arguments.out)


def _status(arguments: argparse.Namespace) -> int:
    folder = _locked_folder(arguments)
    states = folder.states()
    if arguments.json:
        rows = [{"id": run.id, "label": run.label, **vars(states[run.id])} for run in folder.runs()]
        print(json.dumps({"study": folder.lock.name, "folder": str(folder.path), "runs": rows}, indent=1))
        return SUCCESS
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    print(f"{folder.lock.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if folder.to_propose:
        print(f"{folder.to_propose} trials are still to be proposed")
    if refused := folder.refused():
        print(f"{len(refused)} proposals were refused and replaced; the first: {refused[0].reason}")
    if counts.get("failed"):
        print(_failures(folder))
    if _has_changed(arguments.study, folder.lock):
        print("the study has changed since it was last run; `plan` shows what `run` would do")
    return SUCCESS


def _has_changed(study: str, lock: Any) -> bool:
    from experiments.lock import holds
    from experiments.study import Study

    return Path(study).is_file() and not holds(lock, Study.load(study, lock.overrides))


def _results(arguments: argparse.Namespace) -> int:
    from experiments.results import load, table_text

    table = load(_locked_folder(arguments)).sort_values("val_loss", na_position="last")
    print(table.to_csv(index=False).rstrip() if arguments.csv else table_text(table))
    return SUCCESS


def _fit(arguments: argparse.Namespace) -> int:
    from experiments.conclude import fit_text

    print(fit_text(_locked_folder(arguments)))
    return SUCCESS


def _report(arguments: argparse.Namespace) -> int:
    from experiments.conclude import write_report

    print(write_report(_locked_folder(arguments)))
    return SUCCESS


def _worker(arguments: argparse.Namespace) -> int:
    from experiments.worker import main as work

    return work(arguments.folder, arguments.slots, arguments.threads, arguments.parent_fd, arguments.retry_failed)


def _propose(arguments: argparse.Namespace) -> int:
    from experiments.search.propose import main as propose

    return propose(arguments.folder, arguments.waiting, arguments.serve)


def _schema(arguments: argparse.Namespace) -> int:
    from experiments.study import study_schema

    print(json.dumps(study_schema(), indent=2))
    return SUCCESS


if __name__ == "__main__":
    console()
