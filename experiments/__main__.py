"""The command line of studies: `python -m experiments plan | run | status | retry | cancel | results | fit | ...`."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from experiments.commands.tableflags import add_flags
    from nanogpt.config import OneLineParser, UserError, os_problem
    from nanogpt.config.errors import whole_number
except ImportError as error:
    sys.exit(f"{error}; `python -m experiments.doctor` tells what is missing")

DEFAULT_OUT = Path("results")
KINDS = ("error", "oom", "timeout", "crashed", "corrupt", "disk-full")
SUCCESS, FAILURE, MISTAKE, CTRL_C = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. A person's mistake is one line on stderr and status 2."""
    arguments = _parsed(argv)
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
        if arguments.verb not in ("run", "retry"):
            return SUCCESS
        print("run: stopped, because whoever read its output went away; `run` again goes on", file=sys.stderr)
        return FAILURE
    except OSError as error:  # a full disk, a folder that is deleted meanwhile: no bug of ours to trace
        print(f"{arguments.verb}: {os_problem(error)}", file=sys.stderr)
        return FAILURE


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """argparse loses ids that stand behind an option: `retry STUDY --mark-only ID` is meant as it is written."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "ids") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}{arguments.parser.nearest_flag(rest)}")
    if rest:
        arguments.ids = [*arguments.ids, *rest]
    if getattr(arguments, "nproc", None) and hasattr(arguments, "set"):
        _set_nproc(parser, arguments)
    return arguments


def _set_nproc(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from nanogpt.configfile import with_nproc  # only here: `status` need not wait for it

    try:
        arguments.set = with_nproc(arguments.set, arguments.nproc)
    except UserError as error:
        parser.error(str(error))


def console() -> None:
    """The installed command."""
    sys.exit(main())


def _in(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command whose module is loaded when it is called: `--help` and `status` need not load the others."""

    def call(arguments: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"experiments.commands.{module}"), function)(arguments))

    return call


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m experiments", description="Scaling studies: plan, run, fit, report.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="verb")

    plan = _command(commands, "plan", _in("planning", "plan"), "show what would be run, why, and what it costs")
    run = _command(commands, "run", _run, "train what is not finished, then fit and write the report")
    status = _command(commands, "status", _in("looking", "status"), "count the runs in each state, name the failures")
    retry = _command(commands, "retry", _in("running", "retry"), "try failed runs again, and run the study")
    cancel = _command(commands, "cancel", _in("folders", "cancel"), "stop a study's workers, or single runs")
    forget = _command(commands, "forget", _in("folders", "forget"), "move runs aside, as if they had never started")
    results = _command(commands, "results", _in("looking", "results"), "print the table of runs, the best first")
    sync = _command(commands, "sync", _in("uploading", "sync"), "upload the runs that W&B has not got yet")
    fit = _command(commands, "fit", _in("fitting", "fit"), "fit a study's law or optima, or a law to a table",
                   study="?")  # fmt: skip
    report = _command(commands, "report", _in("looking", "report"), "write report.html, report.md, table.csv, figures")

    add_flags(fit)
    for each in (fit, report):
        _add_strict(each)
    for each in (plan, run, retry):
        _add_running(each)
    _add_planning(plan)
    run.add_argument("--dry-run", action="store_true", help="as plan")
    run.add_argument("--retry-failed", action="store_true", help="train failed runs again, from their checkpoints")
    for each in (run, retry):
        each.add_argument("--no-report", action="store_true", help="end after training")
        _add_strict(each)
        _add_drift(each)
    retry.add_argument("ids", nargs="*", metavar="ID", help="runs by id, the beginning of one, or label")
    retry.add_argument("--failed", action="store_true", help="every failed run")
    retry.add_argument("--class", dest="kind", choices=KINDS, help="the failed runs of one class")
    retry.add_argument("--mark-only", action="store_true", help="leave the training to a later run")
    cancel.add_argument("ids", nargs="*", metavar="ID", help="running runs; default: everything")
    forget.add_argument("ids", nargs="*", metavar="ID", help="runs by id, the beginning of one, or label")
    status.add_argument("--json", action="store_true", help="the states of all runs, for programs")
    status.add_argument("--failed", action="store_true", help="only the failed runs, with the end of their logs")
    status.add_argument("--why", action="store_true", help="why each run is in its state, and what `run` would do")
    results.add_argument("--csv", action="store_true", help="print the whole table as comma-separated values")
    results.add_argument("--to", choices=["csv", "parquet", "wandb"],
                         help="write the whole table to a file, or every finished run to W&B")  # fmt: skip
    results.add_argument("--file", type=Path, metavar="FILE", help="of --to; default results.csv in the study's folder")
    results.add_argument("--curves", action="store_true", help="--to csv or parquet: the lines of all histories")
    results.add_argument("--project", metavar="NAME", help="of --to wandb; default: that of the study's tracker")
    results.add_argument("--entity", metavar="NAME", help="of --to wandb: user or team")
    sync.add_argument("--jobs", type=whole_number(1), default=4, metavar="N", help="uploads at a time; default 4")
    _add_worker(commands)
    _add_doctor(commands)
    propose = commands.add_parser("propose", help="publish the next trials of a search (workers start it)")
    propose.set_defaults(command=_propose)
    propose.add_argument("folder", type=Path, metavar="FOLDER")
    propose.add_argument("--waiting", type=whole_number(1), default=1, metavar="N", help="until N trials wait")
    propose.add_argument("--serve", action="store_true", help="what a worker asks, line by line from stdin")
    schema = commands.add_parser("schema", help="print the JSON schema of study files")
    schema.set_defaults(command=_schema)
    schema.add_argument("what", choices=["study"])
    for each in commands.choices.values():
        each.set_defaults(parser=each)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """`run`, with a worker that loads torch from now on: it takes longer than all that comes before the first run."""
    from experiments.standby import standing_by

    study = Path(arguments.study)
    folder = arguments.out / "-".join(filter(None, [study.stem, arguments.size]))
    wanted = study.is_file() and not arguments.dry_run and arguments.launcher in (None, "local")
    with standing_by(folder, wanted) as arguments.standby:
        return _in("running", "run")(arguments)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting for all runs")
    parser.add_argument("--jobs", type=whole_number(1), metavar="N", help="runs at a time (default: one per core)")
    parser.add_argument("--nproc", type=whole_number(1), metavar="N", help="processes of each run (runtime.nproc)")
    parser.add_argument("--launcher", metavar="NAME", help="local, slurm, ray, or inprocess; default: the study's")


def _add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="exit with status 3 when a claim of the study failed")


def _add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", metavar="TIME", help="wall time for the whole study, such as 3h")
    parser.add_argument("--flops", metavar="FLOPS", help="training FLOPs for the whole study, such as 1e18 or 4TFLOP")
    parser.add_argument("--calibrate", action="store_true", help="measure the speed of each shape here for a second")
    parser.add_argument("--price", metavar="MONEY", help="of a device (a GPU, else a machine) and hour")
    parser.add_argument("--power", metavar="WATTS", help="of a device, such as 350W")
    parser.add_argument("--smallest", metavar="N", help="fewest non-embedding parameters of a run that is proposed")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--propose", choices=["isoflop", "tokens_per_param", "chinchilla"],
                        help="write a study of this design that fits the budget to --out FILE.yaml")  # fmt: skip
    choice.add_argument("--next", nargs="?", const="all", metavar="WHAT",
                        help="the most informative run to add to the results: for all parameters, or one")  # fmt: skip


def _add_drift(parser: argparse.ArgumentParser) -> None:
    drift = parser.add_mutually_exclusive_group()
    drift.add_argument("--rerun-drifted", dest="drifted", action="store_const", const="rerun", default="stop",
                       help="train runs anew whose config changed since they were started")  # fmt: skip
    drift.add_argument(
        "--keep-drifted", dest="drifted", action="store_const", const="keep", help="keep them as they are"
    )


def _add_worker(commands: Any) -> None:
    worker = commands.add_parser("worker", help="train a results folder's runs (launchers start it)")
    worker.set_defaults(command=_in("running", "worker"))
    worker.add_argument("folder", type=Path, metavar="FOLDER")
    worker.add_argument("--standby", action="store_true", help="load torch, then read the options from standard input")
    worker.add_argument("--slots", type=whole_number(1), default=1, help="runs at a time")
    worker.add_argument("--threads", type=whole_number(1), default=1, help="threads of each run that names none")
    worker.add_argument("--parent-fd", type=int, help="descriptor whose end of file means: stop")
    worker.add_argument("--retry-failed", action="store_true")
    worker.add_argument("--gpus-per-run", type=whole_number(0), default=1, metavar="G", help="GPUs of each run")
    worker.add_argument("--slots-per-gpu", type=whole_number(1), default=1, metavar="K", help="runs that share a GPU")
    worker.add_argument("--isolation", choices=["fork", "process"], default="fork", help="process: cold starts")
    worker.add_argument("--nproc", type=whole_number(1), default=1, help="processes of each run")
    worker.add_argument("--name", default="", help="what the worker calls itself in its log")
    worker.add_argument("--grace", type=_seconds, default=60.0, metavar="SECONDS",
                        help="time of a run for its last checkpoint when it is to stop; default 60")  # fmt: skip
    worker.add_argument("--on-term", choices=["exit", "requeue-command"], default="exit",
                        help="requeue-command: ask Slurm for this job again after a signal")  # fmt: skip


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="is everything there: packages, devices, the results folder, launchers")
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("study", nargs="?", metavar="STUDY", help="a study's YAML file, or its results folder")
    doctor.add_argument("--launcher", metavar="NAME", help="the one to ask; default: the study's, else local")
    doctor.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER", help="root of results folders")
    doctor.add_argument("--json", action="store_true", help="the findings, for programs")


def _command(commands: Any, name: str, function: Any, help: str, study: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(command=function)
    parser.add_argument("study", nargs=study, metavar="STUDY", help="a study's YAML file, or its results folder")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER", help="root of results folders")
    parser.add_argument("--size", metavar="NAME", help="one of the study's `sizes:` instead of the study as written")
    return parser


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds of at least 0, got {text!r}")
    return number


def _doctor(arguments: argparse.Namespace) -> int:
    from experiments.doctor import main as examine

    return examine(arguments.study, arguments.out, arguments.launcher, arguments.json)


def _propose(arguments: argparse.Namespace) -> int:
    from experiments.search.propose import main as propose

    return propose(arguments.folder, arguments.waiting, arguments.serve)


def _schema(arguments: argparse.Namespace) -> int:
    from experiments.study import study_schema

    print(json.dumps(study_schema(), indent=2))
    return SUCCESS


if __name__ == "__main__":
    console()
