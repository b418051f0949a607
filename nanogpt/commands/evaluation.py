"""`eval`: how good a trained model is."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanogpt.commands.parser import AddCommand
from nanogpt.config import UserError


def add(command: AddCommand) -> None:
    """Add the command."""
    evaluation = command("eval", _eval, "a trained run's validation loss, at any evaluation depth of its trunk")
    evaluation.add_argument("folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or one checkpoint")
    evaluation.add_argument("--depths", metavar="N,N,...", help="loops, such as 1,2,4,8; 3x2x2 under random2d")
    evaluation.add_argument("--device", help="default: the run's")


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
