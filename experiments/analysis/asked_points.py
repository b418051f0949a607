"""Where a fitted law is asked: `N=70B,D=1.4T` as rows of its inputs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.analysis.cells import NotANumber, number
from experiments.analysis.laws import Law
from experiments.analysis.tablefit import Prepared
from nanogpt.config import UserError, did_you_mean


def parse_points(texts: Sequence[str], law: Law, prepared: Prepared) -> pd.DataFrame:
    """Rows of inputs from texts such as `N=70B,D=1.4T`, by symbol or by the table's own name, in any case.

    What a law needs and is not given follows from C = 6 N D. UserError for an unknown name or a value without a
    logarithm.
    """
    points = [_point(text, law, prepared) for text in texts]
    order = [*dict.fromkeys(["N", "D", "C", *law.columns, *law.label_columns])]
    return pd.DataFrame([{name: point[name] for name in order if name in point} for point in points])


def _point(text: str, law: Law, prepared: Prepared) -> dict[str, Any]:
    needed = (*law.columns, *law.label_columns)
    inputs = dict.fromkeys(["N", "D", "C", *needed])
    known = {source.lower(): symbol for symbol, source in prepared.sources.items() if symbol in inputs}
    known |= {symbol.lower(): symbol for symbol in inputs} | {"flops": "C"}
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name.lower() not in known:
            raise UserError(f"--predict {text!r}: {part.strip()!r} is not an input{did_you_mean(name, inputs)} "
                            "(as in N=70B,D=1.4T)")  # fmt: skip
        symbol = known[name.lower()]
        if symbol in values:
            raise UserError(f"--predict {text!r}: {symbol} is given twice")
        if symbol in law.label_columns:
            values[symbol] = value
            continue
        try:
            values[symbol] = number(value)
        except NotANumber as error:
            raise UserError(f"--predict {text!r}: {name} is {error}") from None
        if not values[symbol] > 0:
            raise UserError(f"--predict {text!r}: {name} must be positive")
    given = set(values)
    if {"N", "D"} <= given:
        values.setdefault("C", 6.0 * values["N"] * values["D"])
    elif {"N", "C"} <= set(values):
        values["D"] = values["C"] / (6.0 * values["N"])
    elif {"D", "C"} <= set(values):
        values["N"] = values["C"] / (6.0 * values["D"])
    if idle := _idle(given, set(needed)):
        raise UserError(f"--predict {text!r}: {' and '.join(sorted(idle))} would be ignored: {law.name} reads "
                        f"{' and '.join(needed)}, and C = 6 N D gives the third of N, D and C")  # fmt: skip
    missing = [symbol for symbol in needed if symbol not in values]
    if missing:
        raise UserError(f"--predict {text!r}: {law.name} also needs {' and '.join(missing)}")
    return values


def _idle(given: set[str], needed: set[str]) -> set[str]:
    """What is given and neither read by the law nor what another size follows from."""
    triple = {"N", "D", "C"}
    followed = set().union(*(triple - {symbol} for symbol in needed & triple - given))
    return given - needed - followed
