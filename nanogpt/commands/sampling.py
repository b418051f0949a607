"""`sample`: text from a trained model."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.commands.parser import EXIT_STOPPED, AddCommand
from nanogpt.config import UserError
from nanogpt.config.errors import number, whole_number

if TYPE_CHECKING:
    from nanogpt.sampling import Sampling
    from nanogpt.trained import Trained


def add(command: AddCommand) -> None:
    """Add the command."""
    _add_sample(command("sample", _sample, "text from a trained model"))


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
