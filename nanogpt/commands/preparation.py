"""`prepare`: a corpus's files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanogpt.commands.parser import AddCommand


def add(command: AddCommand) -> None:
    """Add the command."""
    prepare = command("prepare", _prepare, "make a corpus's files")
    prepare.add_argument("name", help="zipf_mixture or shakespeare_char")
    prepare.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a local text instead of a download")
    prepare.add_argument("--data_dir", help="where corpora lie")
    prepare.add_argument("--clean", action="store_true", help="remove the files that prepare made, and only those")


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.data.prepare import prepare

    print(prepare(arguments.name, arguments.source, arguments.data_dir, arguments.clean))
    return 0
