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
    known = {symbol.lower(): symbol for symbol in ("N", "D", "C", *law.columns, *law.label_columns)}
    known |= {source.lower(): symbol for symbol, source in prepared.sources.items()} | {"flops": "C"}
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name.lower() not in known:
            raise UserError(f"--predict {text!r}: {part.strip()!r} is not an input{did_you_mean(name, known.values())} "
                            "(as in N=70B,D=1.4T)")  # fmt: skip
        symbol = known[name.lower()]
        if symbol in law.label_columns:
            values[symbol] = value
            continue
        try:
            values[symbol] = number(value)
        except NotANumber as error:
            raise UserError(f"--predict {text!r}: {name} is {error}") from None
        if not values[symbol] > 0:
            raise UserError(f"--predict {text!r}: {name} must be positive")
    if {"N", "D"} <= set(values):
        values.setdefault("C", 6.0 * values["N"] * values["D"])
    elif {"N", "C"} <= set(values):
        values["D"] = values["C"] / (6.0 * values["N"])
    elif {"D", "C"} <= set(values):
        values["N"] = values["C"] / (6.0 * values["D"])
    missing = [symbol for symbol in (*law.columns, *law.label_columns) if symbol not in values]
    if missing:
        raise UserError(f"--predict {text!r}: {law.name} also needs {' and '.join(missing)}")
    return values
