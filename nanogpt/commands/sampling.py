"""`sample`: text from a trained model."""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.commands.parser import EXIT_STOPPED, AddCommand
from nanogpt.config import UserError
from nanogpt.config.errors import number, whole_number
from nanogpt.config.weights import GPT2_NAMES, HUB

if TYPE_CHECKING:
    from nanogpt.sampling import Sampling
    from nanogpt.trained import Trained


NEW_TOKENS = 200  # unless a length is asked for


def add(command: AddCommand) -> None:
    """Add the command."""
    _add_sample(command("sample", _sample, "text from a trained model"))


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(words=[])
    add("place", nargs="?", metavar="RUN_OR_CHECKPOINT",
        help="a run's folder, one of its checkpoint-*.pt files, or weights (hf:gpt2, a local folder)")  # fmt: skip
    # argparse takes positional arguments only side by side: a prompt that stands apart comes by `words`.
    add("prefix", nargs="?", metavar="PROMPT", help="how the text begins, as --prompt")
    add("--prompt", metavar="TEXT", help="how the text begins (token ids where the corpus has no text); default: empty")
    add("--pretrained", metavar="NAME", help="weights in place of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl, "
        "any hf:NAME, or a local folder")  # fmt: skip
    add("--num_samples", type=whole_number(1), default=1, metavar="N", help="default %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max_new_tokens", type=whole_number(1), metavar="N",
                        help=f"length beyond the prompt; default {NEW_TOKENS}")  # fmt: skip
    length.add_argument("--max_length", "--max-length", type=whole_number(1), metavar="N",
                        help="length with the prompt, in tokens")  # fmt: skip
    add("--ranks", type=Path, metavar="FILE", help="GPT-2's ranks (vocab.bpe or r50k_base.tiktoken) or a folder with "
        "them, where the corpus has no tokenizer of its own")  # fmt: skip
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

    asked = _asked(arguments)
    wanted = Wanted(
        asked.prompt,
        arguments.num_samples,
        arguments.seed,
        _sampling(arguments),
        max_length=arguments.max_length,
        ranks=arguments.ranks,
    )
    trained = load_trained(asked.place, arguments.device)
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


@dataclass(frozen=True)
class _Asked:
    place: Path
    prompt: str


def _asked(arguments: argparse.Namespace) -> _Asked:
    """What the words without a flag mean: a place and perhaps a prompt; after --pretrained, a prompt alone."""
    words = [word for word in (arguments.place, arguments.prefix) if word is not None] + arguments.words
    place = words.pop(0) if arguments.pretrained is None and words else arguments.pretrained
    if place is None:
        raise UserError("sample: name a run, one of its checkpoints, or weights: --pretrained=gpt2")
    if len(words) > 1:
        raise UserError(f"sample: one prompt was expected, got {' '.join(map(repr, words))}; put it between quotes")
    if words and arguments.prompt is not None:
        raise UserError(f"sample: two prompts: {words[0]!r} and --prompt {arguments.prompt!r}; give one of them")
    if arguments.pretrained is not None:
        place = _weights(place)
    return _Asked(Path(place), words[0] if words else arguments.prompt or "")


def _weights(name: str) -> str:
    """The place that --pretrained names: a folder that is there, else a name on the Hugging Face Hub."""
    is_folder = name not in GPT2_NAMES and Path(name).is_dir()
    return name if is_folder or name.startswith(HUB) else f"{HUB}{name}"


def _sampling(arguments: argparse.Namespace) -> "Sampling":
    """The settings that the flags say. A greedy choice leaves the others out of account, and says which were given."""
    from nanogpt.sampling import Sampling

    if arguments.greedy and arguments.do_sample:
        raise UserError("sample: --greedy and --do_sample contradict each other; give one of them")
    filters = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: getattr(arguments, name) for name in filters if getattr(arguments, name) is not None}
    how = Sampling(
        arguments.max_new_tokens or NEW_TOKENS,
        do_sample=not arguments.greedy and arguments.do_sample is not False,
        **given,
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
