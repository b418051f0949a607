"""Between a table's units and a law's coordinates: ln x minus a centre, and parameters as theta vectors."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column, row_names
from experiments.analysis.laws.base import Array, Columns, Law
from nanogpt.config import UserError


def read_inputs(law: Law, table: pd.DataFrame, place: str) -> pd.DataFrame:
    """The law's columns of a table that may call them by another name (`column`), the numbers as float64.

    UserError for a column that is not there, and for a value that is no number or has no logarithm.
    """
    rows = row_names(table).to_list()
    read = {name: arguments.numbers(table[column(table, name, place)], rows, place) for name in law.columns}
    numbers = pd.DataFrame(read, index=table.index)
    return numbers.assign(**{name: table[column(table, name, place)] for name in law.label_columns})


def encode(law: Law, table: Columns) -> dict[str, Array]:
    """The law's inputs as ln x by column, uncentred; labels become their codes. UserError for a label not known."""
    logs = {name: np.log(np.asarray(table[name], dtype=np.float64)) for name in law.columns}
    return logs | {name: _codes(name, table[name], levels) for name, levels in law.levels.items()}


def _codes(column: str, values: npt.ArrayLike, levels: tuple[str, ...]) -> Array:
    names = [str(value) for value in np.asarray(values)]
    unknown = next((name for name in names if name not in levels), None)
    if unknown is not None:
        raise UserError(f"{column}: {unknown!r} was not fitted; known: {', '.join(levels)}")
    return np.array([levels.index(name) for name in names])


def centred(x: Mapping[str, Array], centres: Mapping[str, float]) -> dict[str, Array]:
    """`x` with the centres subtracted."""
    return {name: values - centres[name] if name in centres else values for name, values in x.items()}


def natural(law: Law, theta: Array, centres: Mapping[str, float]) -> dict[str, Array]:
    """Parameters in the table's units, each (batch,), from coordinates (batch, parameters)."""
    at = dict(zip(law.parameters, theta.T, strict=True))
    moved = {name: value + _shift(law, name, at, centres) for name, value in at.items()}
    return {q.symbol: np.exp(moved[q.symbol]) if q.log else moved[q.symbol] for q in law.quantities}


def coordinates(law: Law, params: Mapping[str, npt.ArrayLike], centres: Mapping[str, float]) -> Array:
    """The inverse of `natural`: (batch, parameters) from parameters that are numbers or arrays (batch,)."""
    given = {name: np.atleast_1d(np.asarray(params[name], dtype=np.float64)) for name in law.parameters}
    plain = {q.symbol: np.log(given[q.symbol]) if q.log else given[q.symbol] for q in law.quantities}
    columns = [value - _shift(law, name, plain, centres) for name, value in plain.items()]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _shift(law: Law, symbol: str, at: Mapping[str, Array], centres: Mapping[str, float]) -> Array:
    """What the centres add to a logarithm: its unit's columns, each to its power."""
    quantity = next(q for q in law.quantities if q.symbol == symbol)
    powers = [(column, at[power] if isinstance(power, str) else power) for column, power in quantity.scales]
    return np.asarray(sum((power * centres.get(column, 0.0) for column, power in powers), 0.0))


def box(law: Law, ln_y: Array) -> tuple[Array, Array]:
    """The widest coordinates that still mean something for losses like these."""
    lower, upper = np.array([(_plain(q.lower, q.log), _plain(q.upper, q.log)) for q in law.quantities]).T
    of_loss = np.array([q.of_loss for q in law.quantities])
    return lower + np.where(of_loss, ln_y.min(), 0.0), upper + np.where(of_loss, ln_y.max(), 0.0)


def grids(law: Law) -> dict[str, Array]:
    """The trial values that the parameters state, as coordinates."""
    return {q.symbol: np.array([_plain(value, q.log) for value in q.grid]) for q in law.quantities if q.grid}


def _plain(value: float, log: bool) -> float:
    return float(np.log(value)) if log else value


def predict(law: Law, params: Mapping[str, npt.ArrayLike], table: Columns) -> Array:
    """The loss at each row; see `Law.predict`."""
    import torch

    x = {name: torch.as_tensor(values) for name, values in encode(law, table).items()}
    theta = torch.as_tensor(coordinates(law, params, {}))
    log_loss = law.log_loss({name: theta[:, i, None] for i, name in enumerate(law.parameters)}, x)
    many = any(np.ndim(params[name]) for name in law.parameters)
    loss: Array = log_loss.exp().expand(len(theta), -1).numpy()
    return loss if many else loss[0]
