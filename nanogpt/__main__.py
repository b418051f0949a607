"""The engine's command line, `python -m nanogpt train | sample | eval | describe | rules | coord-check | ...`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from nanogpt.commands import evaluation, inspection, preparation, sampling, training
from nanogpt.commands.parser import EXIT_FAILED, EXIT_USER
from nanogpt.config import OneLineParser, UserError, os_problem
from nanogpt.config.errors import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr and status 2."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "words"):  # a command that takes words anywhere; argparse has them side by side only
        arguments.words = [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
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
    flags = [f"--{name}" for name in vars(arguments) if name not in ("command", "run", "target", "place", "words")]
    word = unknown.partition("=")[0].lstrip("-").replace("-", "_")
    hint = did_you_mean(f"--{word}", flags) if unknown.startswith("-") else ""
    return hint if "did you mean" in hint else "; settings are written --key=value"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="nanogpt", description="Train one GPT from one config.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace, Sequence[str]], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    for kind in (training, sampling, evaluation, inspection, preparation):
        kind.add(command)
    return parser


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
