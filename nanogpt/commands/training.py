"""`train`: one run from a config file or a run's folder; for a worker, one attempt."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanogpt.commands.parser import EXIT_FAILED, EXIT_INTERRUPTED, AddCommand, load
from nanogpt.config import Config, UserError
from nanogpt.config.errors import whole_number
from nanogpt.configfile import with_nproc
from nanogpt.ranks import is_rank, rank, ranks_started


def add(command: AddCommand) -> None:
    """Add the command."""
    train = command("train", _train, "train a config file, or go on with a run's folder")
    train.add_argument("target", type=Path, metavar="CONFIG_OR_FOLDER", help="then any settings as --key=value")
    train.add_argument("--reset", action="store_true", help="start the run clean; asks first")
    train.add_argument("--yes", action="store_true", help="do not ask")
    train.add_argument(
        "--nproc", type=whole_number(1), metavar="N", help="processes that train it together (runtime.nproc)"
    )
    train.add_argument("--attempt", type=int, help=argparse.SUPPRESS)
    train.add_argument("--fence", type=Path, help=argparse.SUPPRESS)
    train.add_argument("--parent_fd", type=int, help=argparse.SUPPRESS)
    train.add_argument("--branch_folder", type=Path, help=argparse.SUPPRESS)
    train.add_argument("--branch_points", type=_steps, default=(), help=argparse.SUPPRESS)


def _steps(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _train(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads

    config = load(arguments.target, with_nproc(overrides, _processes(arguments)))
    calm_threads()
    if arguments.attempt is not None:
        return _train_for_worker(arguments, config)
    from nanogpt.describe import describe
    from nanogpt.materials import gather
    from nanogpt.runfolder import check_folder, default_folder, next_attempt, reset, write_folder
    from nanogpt.trackers import check_installed

    check_installed(config.runtime.tracker)
    description = describe(config)
    config = description.config
    given = Path(config.runtime.out_dir) if config.runtime.out_dir else None
    folder = (
        arguments.target if arguments.target.is_dir() else given or default_folder(arguments.target, description.id)
    )
    if arguments.reset:
        reset(folder, arguments.yes)
    check_folder(folder, config)
    if (folder / "metrics.json").exists():
        print(f"{folder}: already finished, nothing to do (--reset starts it clean)")
        return _show(folder)
    materials = gather(description, folder)
    write_folder(folder, config)
    return _run(description, materials, folder, next_attempt(folder), arguments, person=True)


def _processes(arguments: argparse.Namespace) -> int | None:
    """How many processes are asked for on the command line, or were started by a person's own torchrun."""
    if is_rank() and arguments.attempt is None:
        raise UserError("train: torchrun is not needed: --nproc N starts the processes")
    return ranks_started() if is_rank() else arguments.nproc


def _train_for_worker(arguments: argparse.Namespace, config: Config) -> int:
    from nanogpt.describe import describe
    from nanogpt.materials import gather
    from nanogpt.record import attempt_folder

    folder: Path = arguments.target
    attempt_folder(folder, arguments.attempt).mkdir(parents=True, exist_ok=True)
    description = describe(config)
    materials = gather(description, folder, arguments.branch_folder)
    return _run(description, materials, folder, arguments.attempt, arguments, person=False)


def _run(
    description: Any, materials: Any, folder: Path, attempt: int, arguments: argparse.Namespace, person: bool
) -> int:
    from nanogpt.attempt import run_attempt
    from nanogpt.record import PUBLISHED, publish
    from nanogpt.reporting import Narrator
    from nanogpt.stop import StopRequest, SupersededError, stop_signals, watch_captain, watch_parent
    from nanogpt.team import PeersLostError
    from nanogpt.trackers.mirror import mirrored

    if description.config.runtime.nproc > 1 and not is_rank():
        return _lead(description, folder, attempt, arguments, person)
    stop = StopRequest()
    if is_rank():
        watch_captain(stop)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd, lambda: stop.ask("parent process gone"))
    leads, loaded = rank() == 0, materials.loaded
    narrator = Narrator(description, folder, speaks=leads)
    tracker = mirrored(description, folder, attempt, loaded.file.step if loaded is not None else 0, leads)
    fence, points = arguments.fence, arguments.branch_points
    try:
        with stop_signals(stop, patient=is_rank()), tracker as mirror:
            narrator.begin()
            narrator.resumed(loaded, attempt)
            record = run_attempt(description, materials, folder, attempt, stop, fence, narrator.line, points)
            mirror.ended(record)
    except (SupersededError, PeersLostError) as error:
        print(f"nanogpt: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if record.status == "failed":
        print("\n".join((record.error or {}).get("traceback_tail", [])), file=sys.stderr)
        return EXIT_FAILED
    if record.status == "interrupted":
        narrator.interrupted(record, stop.reason)
        return EXIT_INTERRUPTED
    assert record.status in PUBLISHED
    if person:
        publish(folder, attempt)
        return _show(folder)
    return 0


def _lead(description: Any, folder: Path, attempt: int, arguments: argparse.Namespace, person: bool) -> int:
    """Train in several processes, and end as one process would."""
    from nanogpt.captain import lead
    from nanogpt.record import publish

    options = ["--branch_folder", str(arguments.branch_folder)] if arguments.branch_folder else []
    points = ",".join(map(str, arguments.branch_points))
    options += ["--branch_points", points] if points else []
    code = lead(description, folder, attempt, arguments.fence, arguments.parent_fd, options)
    if code or not person:
        return code
    publish(folder, attempt)
    return _show(folder)


def _show(folder: Path) -> int:
    from nanogpt.lossplot import draw_loss
    from nanogpt.record import read_published
    from nanogpt.reporting import summary

    record = read_published(folder)
    if not (folder / "loss.png").exists():
        draw_loss(folder)
    print(summary(record, folder))
    return 0
