"""What a person should look at in a table that is fitted, in words; none of it stops a fit."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from experiments.analysis.cells import number
from experiments.analysis.laws import Law
from experiments.analysis.readtable import Table

HIGHEST_LOSS = 20.0  # nats per token; the logarithm of any vocabulary is less
FEWEST_PARAMETERS = 1e4  # below which sizes are probably in millions
FAR = 3.0  # a compute column so many times 6 N D is in another unit, or counts something else


def flag_of(key: str) -> str:
    """How a role is said on the command line."""
    return f"--{key}" if key in ("n", "d", "flops", "loss") else f"--input {key}"


def table_warnings(kept: pd.DataFrame, law: Law, table: Table, named: Mapping[str, str]) -> Iterator[str]:
    """About the rows to fit. `named`: a role (`n`, `loss`, ...) to its column or expression."""
    for key, name in named.items():
        if name in table.frame.columns and (cells := table.with_units(name)):
            yield (f"{len(cells)} cells of {name} ({flag_of(key)}) have a unit and were read as numbers: "
                   f"{cells[0]} as {number(cells[0]):g}")  # fmt: skip
    if not len(kept):
        return
    highest = float(kept["L"].max())
    if highest > HIGHEST_LOSS:
        yield f"the highest loss is {highest:.4g}: is the column a perplexity or a percentage, not nats per token?"
    if "N" in law.columns and float(kept["N"].max()) < FEWEST_PARAMETERS:
        yield (f"the largest N is {kept['N'].max():g}: in millions or billions? Coefficients, 6 N D and "
               "--predict take this unit; an expression such as --n \"N * 1e6\" changes it")  # fmt: skip
    for name in law.columns if len(kept) > 3 else ():
        rises = np.corrcoef(np.log(kept[name]), np.log(kept["L"]))[0, 1] if kept[name].nunique() > 1 else -1.0
        if len(law.columns) == 1 and rises > 0:
            yield f"the loss grows with {name}: is it a loss, and the right column?"
    if {"n", "d", "flops"} <= named.keys():
        yield from _odd_compute(kept, named["flops"])
    if spare := sorted(table.repeated):
        yield f"the header holds {', '.join(map(repr, spare))} more than once; the first was read"


def _odd_compute(kept: pd.DataFrame, column: str) -> Iterator[str]:
    """A compute column that stands beside N and D and does not agree with them."""
    good = kept[kept["C"] > 0]
    if len(good) < len(kept):
        yield (f"{len(kept) - len(good)} of {len(kept)} cells of {column} (--flops) are zero, negative or empty; "
               "held-out cuts go by this column")  # fmt: skip
    if not len(good):
        return
    factor = float((good["C"] / (6.0 * good["N"] * good["D"])).median())
    if not 1 / FAR <= factor <= FAR:
        yield (f"{column} (--flops) is {factor:.3g} times 6 N D in the median row: is it in FLOPs, and are --n and --d "
               "in plain parameters and tokens?")  # fmt: skip


def unused_sizes(law: Law, sources: Mapping[str, str], named: Mapping[str, str]) -> Iterator[str]:
    """N or D that neither the law reads nor another symbol follows from."""
    for key, symbol, other in (("n", "N", "D"), ("d", "D", "N")):
        follows = other in law.columns and other.lower() not in named
        if key in named and "flops" in named and symbol not in law.columns and not follows:
            read = " and ".join(law.columns)
            yield f"--{key} ({sources[symbol]}) is not used: {law.name} reads {read}"
