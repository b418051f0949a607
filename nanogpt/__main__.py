"""The engine's command line, `python -m nanogpt train | sample | eval | describe | rules | coord-check | ...`."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt.config import Config, OneLineParser, UserError, os_problem
from nanogpt.config.errors import did_you_mean, number, whole_number
from nanogpt.configfile import build_config, lay_overrides, load_layers, with_nproc

if TYPE_CHECKING:
    from nanogpt.describe import Description
    from nanogpt.sampling import Sampling
    from nanogpt.trained import Trained

EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 75
EXIT_STOPPED = 130  # a shell's for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr and status 2."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [text for text in rest if "=" in text]
    if len(overrides) < len(rest) or (overrides and not hasattr(arguments, "target")):
        unknown = next(text for text in rest if text not in overrides or not hasattr(arguments, "target"))
        print(f"nanogpt: {unknown}: not understood{_nearest_flag(unknown, arguments)}", file=sys.stderr)
        return EXIT_USER
    try:
        return arguments.run(arguments, overrides)
    except UserError as error:
        print(f"nanogpt: {error}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder deleted while training: no bug of ours to trace
        print(f"nanogpt: {os_problem(error)}", file=sys.stderr)
        return EXIT_FAILED


def _nearest_flag(unknown: str, arguments: argparse.Namespace) -> str:
    flags = [f"--{name}" for name in vars(arguments) if name not in ("command", "run", "target", "place")]
    word = unknown.partition("=")[0].lstrip("-").replace("-", "_")
    hint = did_you_mean(f"--{word}", flags) if unknown.startswith("-") else ""
    return hint if "did you mean" in hint else "; settings are written --key=value"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="nanogpt", description="Train one GPT from one config.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

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
    _add_sample(command("sample", _sample, "text from a trained model"))
    evaluation = command("eval", _eval, "a trained run's validation loss, at any evaluation depth of its trunk")
    evaluation.add_argument("folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or one checkpoint")
    evaluation.add_argument("--depths", metavar="N,N,...", help="loops, such as 1,2,4,8; 3x2x2 under random2d")
    evaluation.add_argument("--device", help="default: the run's")
    describe = command("describe", _describe, "parameters, FLOPs and memory of a config, without training it")
    describe.add_argument("target", type=Path, nargs="?", metavar="CONFIG", help="then any settings as --key=value")
    describe.add_argument("--many", action="store_true", help="read a JSON list of configs on stdin, answer as JSON")
    describe.add_argument("--elsewhere", action="store_true", help="with --many: devices need not be here")
    rules = command("rules", _rules, "the parametrization's rules with the numbers of a config")
    rules.add_argument("target", type=Path, metavar="CONFIG", help="then any settings as --key=value")
    _add_coord_check(command("coord-check", _coord_check, "do activations stay put while a model grows?"))
    command("throughput", _throughput, "measure how fast configs train here: JSON lines in and out (planners start it)")
    prepare = command("prepare", _prepare, "make a corpus's files")
    prepare.add_argument("name", help="zipf_mixture or shakespeare_char")
    prepare.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a local text instead of a download")
    prepare.add_argument("--data_dir", help="where corpora lie")
    prepare.add_argument("--clean", action="store_true", help="remove the files that prepare made, and only those")
    schema = command("schema", _schema, "the JSON schema of config files")
    schema.add_argument("what", choices=["config"])
    return parser


def _steps(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("place", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or one of its checkpoint-*.pt files")
    add("--prompt", default="", metavar="TEXT", help="how the text begins (token ids where there are no characters)")
    add("--num_samples", type=whole_number(1), default=1, metavar="N", help="default %(default)s")
    add(
        "--max_new_tokens",
        type=whole_number(1),
        default=200,
        metavar="N",
        help="length beyond the prompt; default %(default)s",
    )
    add("--temperature", type=number, metavar="T", help="default 1; 0 always takes the likeliest token")
    add("--top_k", type=whole_number(0), metavar="K", help="draw among the K likeliest; 0 is off, the default")
    add(
        "--top_p",
        type=number,
        metavar="P",
        help="draw among the likeliest that together reach P; 1 is off, the default",
    )
    add("--min_p", type=number, metavar="P", help="draw among those at least P times as likely as the likeliest")
    add("--repetition_penalty", type=number, metavar="X", help="lower tokens seen before; 1 is off, the default")
    add("--seed", type=whole_number(), default=1337, help="default %(default)s; the same seed gives the same text")
    add("--greedy", action="store_true", help="always take the likeliest token, as --no-do_sample")
    draw = parser.add_mutually_exclusive_group()
    draw.add_argument("--do_sample", action="store_true", default=None, help="draw, the default")
    draw.add_argument("--no-do_sample", "--no_do_sample", dest="do_sample", action="store_false", default=None,
                      help="take the likeliest token")  # fmt: skip
    add("--recurrent_depth", metavar="N", help="loops, for a trunk whose depth is chosen freely")
    add("--device", help="default: the run's")


def _add_coord_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="CONFIG", help="then any settings as --key=value")
    parser.add_argument("--widths", metavar="N,N,...", help="values of n_embd, such as 32,64,128,256")
    parser.add_argument("--depths", metavar="N,N,...", help="values of n_layer, such as 2,4,8,16,32")
    parser.add_argument("--modes", metavar="MODE,...", help="default: all")
    parser.add_argument(
        "--steps", type=whole_number(), default=10, help="optimizer steps per model; default %(default)s"
    )
    parser.add_argument("--seeds", type=whole_number(), default=3, help="models per size and mode; default %(default)s")
    parser.add_argument("--sequences", type=whole_number(), default=8, help="sequences per step; default %(default)s")
    parser.add_argument("--learning_rate", type=number, help="constant; default: moves weights by 1/20 of init_std")
    parser.add_argument("--adamw_learning_rate", type=number, help="with Muon: constant rate of what AdamW trains")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/coord_check/CONFIG")


def _load(target: Path, overrides: Sequence[str]) -> Config:
    file = target / "config.yaml" if target.is_dir() else target
    layers = load_layers(file)
    lay_overrides(layers, overrides)
    return build_config(layers, str(file))


def _train(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads

    config = _load(arguments.target, with_nproc(overrides, _processes(arguments)))
    calm_threads()
    if arguments.attempt is not None:
        return _train_for_worker(arguments, config)
    from nanogpt.describe import describe
    from nanogpt.materials import gather
    from nanogpt.runfolder import check_folder, default_folder, next_attempt, reset, write_folder

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
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started is not None and arguments.attempt is None:
        raise UserError("train: torchrun is not needed: --nproc N starts the processes")
    return started or arguments.nproc


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
    from nanogpt.team import PeersLostError, is_rank

    if description.config.runtime.nproc > 1 and not is_rank():
        return _lead(description, folder, attempt, arguments, person)
    stop = StopRequest()
    if is_rank():
        watch_captain(stop)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd, stop)
    narrator = Narrator(description, folder, speaks=os.environ.get("RANK", "0") == "0")
    fence, points = arguments.fence, arguments.branch_points
    try:
        with stop_signals(stop, patient=is_rank()):
            narrator.begin()
            narrator.resumed(materials.loaded, attempt)
            record = run_attempt(description, materials, folder, attempt, stop, fence, narrator.line, points)
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


def _describe(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.describe import describe_many, format_description

    if arguments.many:
        # Not json.dump: it encodes in Python, and writes each number by itself.
        sys.stdout.write(json.dumps(describe_many(json.load(sys.stdin), arguments.elsewhere)))
        return 0
    if arguments.target is None:
        raise UserError("describe: needs a config file, or --many")
    description, missing = _described(_load(arguments.target, overrides))
    print(format_description(description, missing))
    return 0


def _described(config: Config) -> tuple["Description", str]:
    """What can be said of a config, and why its corpus is not there if it is not: sizes and rules need none."""
    from nanogpt.data.corpora import MissingCorpus
    from nanogpt.describe import describe, describe_without_corpus

    try:
        return describe(config), ""
    except MissingCorpus as problem:
        return describe_without_corpus(config, problem), str(problem)


def _sample(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads, keep_freed_memory

    calm_threads()
    keep_freed_memory()
    from nanogpt.samples import Wanted, write_samples
    from nanogpt.trained import load_trained

    wanted = Wanted(arguments.prompt, arguments.num_samples, arguments.seed, _sampling(arguments))
    trained = load_trained(arguments.place, arguments.device)
    for note in trained.damaged:
        print(f"nanogpt: passed over: {note}", file=sys.stderr)
    if arguments.recurrent_depth is not None:
        _choose_depth(trained, arguments.recurrent_depth)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character still gets the others
    try:
        for piece in write_samples(trained, wanted):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print()
        return EXIT_STOPPED
    return 0


def _eval(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads

    calm_threads()
    from nanogpt.depths import losses_by_depth, table_lines

    depths = [depth.strip() for depth in arguments.depths.split(",")] if arguments.depths is not None else []
    if "" in depths:
        raise UserError(f"eval: --depths: an empty depth in {arguments.depths!r}; write them as in 1,2,4")
    for line in table_lines(losses_by_depth(arguments.folder, depths, arguments.device)):
        print(line, flush=True)
    return 0


def _sampling(arguments: argparse.Namespace) -> "Sampling":
    """The settings that the flags say. A greedy choice leaves the others out of account, and says which were given."""
    from nanogpt.sampling import Sampling

    if arguments.greedy and arguments.do_sample:
        raise UserError("sample: --greedy and --do_sample contradict each other; give one of them")
    filters = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: getattr(arguments, name) for name in filters if getattr(arguments, name) is not None}
    how = Sampling(
        arguments.max_new_tokens, do_sample=not arguments.greedy and arguments.do_sample is not False, **given
    )
    idle = [f"--{name}" for name in given if name != "temperature" or how.temperature > 0]
    if how.is_greedy and idle:
        print(f"nanogpt: sample: the likeliest token is taken, {', '.join(idle)} left out of account", file=sys.stderr)
    return how


def _choose_depth(trained: "Trained", depth: str) -> None:
    try:
        trained.model.trunk.evaluate_at(depth)
    except UserError as error:
        raise UserError(f"sample: --recurrent_depth {depth}: {error}") from None


def _rules(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.rules import format_config_rules

    description, _ = _described(_load(arguments.target, overrides))
    print(format_config_rules(description))
    return 0


def _coord_check(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.coordreport import check, sweeps_from

    if any("learning_rate=" in text for text in overrides):
        raise UserError("coord-check: takes --learning_rate, its own, which replaces that of the config")
    config = _load(arguments.target, overrides)
    name = arguments.target.resolve().name if arguments.target.is_dir() else arguments.target.stem
    print(check(config, sweeps_from(arguments, config), arguments.out or Path("results") / "coord_check" / name))
    return 0


def _throughput(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads
    from nanogpt.throughput import serve

    calm_threads()
    serve()
    return 0


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.data.prepare import prepare

    print(prepare(arguments.name, arguments.source, arguments.data_dir, arguments.clean))
    return 0


def _schema(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.config.jsonschema import config_schema

    print(json.dumps(config_schema(), indent=2))
    return 0


def console() -> None:
    """Entry point that leaves no traceback when the reader of a pipe goes away."""
    try:
        code = main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    sys.exit(code)


if __name__ == "__main__":
    console()
