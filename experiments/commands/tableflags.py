"""The flags of `fit --csv`, apart from what they do: every command builds the parser."""

import argparse
from pathlib import Path

from nanogpt.config.errors import whole_number

DELTA = 1e-3


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a fit to a table."""
    table = parser.add_argument_group("a table instead of a study")
    table.add_argument("--csv", metavar="FILE", help="CSV or TSV, gzipped or not; the flags below speak of its columns")
    table.add_argument("--n", metavar="COL", help="model size: a column, or an expression such as 'params_m * 1e6'")
    table.add_argument("--d", metavar="COL", help="training tokens")
    table.add_argument("--flops", metavar="COL", help="training compute; with one of --n and --d, C = 6 N D the other")
    table.add_argument("--input", action="append", metavar="NAME=COL", help="another input: unique, experts, group, x")
    table.add_argument("--loss", metavar="COL", help="the loss that is fitted")
    table.add_argument("--law", metavar="NAME", help="default: chinchilla, power_law where there is --flops alone")
    table.add_argument("--loss-fn", default=None, metavar="FN", help="huber (default), lad or lsq, summed")
    table.add_argument("--delta", type=float, help=f"threshold of huber; default {DELTA:g}")
    table.add_argument("--residual", default="log", choices=["log", "loss"],
                       help="misses of ln L (default), or of L itself (by lsq, unless --loss-fn)")  # fmt: skip
    table.add_argument("--bootstrap", type=whole_number(0), default=None, metavar="B", help="resamples; default 1000")
    table.add_argument("--resample", choices=["residual", "pairs"], help="default: residual; pairs with --cluster")
    table.add_argument("--cluster", metavar="COL", help="rows of equal value are drawn together")
    table.add_argument("--intervals", choices=["bootstrap", "profile"],
                       help="of the parameters; default: the law's own, known to cover")  # fmt: skip
    table.add_argument("--seed", type=int, default=0)
    table.add_argument("--where", metavar="EXPR", help="only rows for which this holds, as in 'D > 20 * N'")
    table.add_argument("--drop", action="append", default=[], metavar="EXPR", help="not the rows for which this holds")
    table.add_argument("--trust-units", action="store_true", help="fit although units seem to be mixed in a column")
    table.add_argument(
        "--rollout", type=whole_number(0), default=5, metavar="CUTS", help="cuts of the held-out error; 0 for none"
    )
    table.add_argument("--holdout", metavar="CUT", help="one cut, as in largest=3 or below=1e21,by=C")
    table.add_argument("--predict", action="append", default=[], metavar="N=..,D=..", help="the loss there; repeatable")
    table.add_argument("--json", type=Path, metavar="OUT", help="everything, for programs; - for standard output")
    table.add_argument("--figure", type=Path, metavar="OUT.png", help="fit, residuals and held-out rows; png, svg, pdf")
    table.add_argument("--corner", type=Path, metavar="OUT.png", help="the draws of all parameters, in pairs")
