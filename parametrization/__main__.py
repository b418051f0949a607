"""`python -m parametrization table --n_embd 256 --base_n_embd 64`: the scaling rules of a shape, for people."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NoReturn, get_args

from parametrization.muon import MuonScale, matrix_shapes
from parametrization.rules import MODES, WEIGHT_DECAY_RULES, ModeName, Shape, scaling_rules
from parametrization.table import MuonHalf, format_modes

USUAL_HEAD = 64


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


_positive_number.__name__ = "positive number"
_positive.__name__ = "positive whole number"  # argparse shows it: "invalid positive whole number value: '0'"


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows what is allowed)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="python -m parametrization", description=__doc__)
    table = parser.add_subparsers(dest="command", required=True).add_parser("table", help="print the rules")
    table.add_argument("--mode", choices=list(MODES), help="default: all, one under the other")
    table.add_argument("--n_embd", type=_positive, required=True)
    table.add_argument("--base_n_embd", type=_positive, help="default: n_embd")
    table.add_argument("--n_layer", type=_positive, default=12)
    table.add_argument("--base_n_layer", type=_positive, help="default: n_layer")
    table.add_argument("--head_size", type=_positive, help=f"default: {USUAL_HEAD}, or n_embd where that is less")
    table.add_argument("--base_head_size", type=_positive, help="default: head_size")
    table.add_argument("--ffn_hidden", type=_positive, help="default: 4 * n_embd")
    table.add_argument("--base_ffn_hidden", type=_positive, help="default: in proportion to n_embd")
    table.add_argument("--init_std", type=_positive_number, default=0.02)
    table.add_argument("--weight_decay_rule", choices=WEIGHT_DECAY_RULES, default="width")
    table.add_argument("--residual_init", choices=("gpt2", "plain"), default="gpt2")
    table.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of the backbone's matrices")
    table.add_argument("--scale", choices=get_args(MuonScale), help="of Muon's update; default: original")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; a wrong argument exits with status 2 and one line."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.scale is not None and given.optimizer != "muon":
        parser.error("argument --scale: goes with --optimizer muon alone")
    head_size = given.head_size or min(USUAL_HEAD, given.n_embd)
    if given.n_embd % head_size:
        parser.error(f"argument --n_embd: {given.n_embd} is not a multiple of the head size, {head_size}")
    ffn_hidden = given.ffn_hidden or 4 * given.n_embd
    base_n_embd = given.base_n_embd or given.n_embd
    shape = Shape(given.n_embd, given.n_layer, head_size, ffn_hidden)
    base = Shape(
        base_n_embd,
        given.base_n_layer or given.n_layer,
        given.base_head_size or head_size,
        given.base_ffn_hidden or ffn_hidden * base_n_embd / given.n_embd,
    )
    options = {key: getattr(given, key) for key in ("init_std", "weight_decay_rule", "residual_init")}
    modes: list[ModeName] = [given.mode] if given.mode else list(MODES)
    muon = None
    if given.optimizer == "muon":
        shapes = matrix_shapes(given.n_embd, ffn_hidden)
        muon = MuonHalf(given.scale or "original", given.weight_decay_rule, shapes)
    print(format_modes({mode: scaling_rules(mode, shape, base, **options) for mode in modes}, muon))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `... | head`
        sys.stdout = None
