"""What every figure function keeps to: `figure(df, ax=None, **keywords) -> Axes`, and one clear line for bad arguments.

A figure of several panels divides the place of its `ax` among axes inside it (`ax.child_axes`) and returns `ax`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from experiments.analysis.columns import column, finished
from experiments.analysis.coordinates import read_inputs
from experiments.analysis.fitted import Fit
from nanogpt.config import UserError

Draw = TypeVar("Draw", bound=Callable[..., Axes])


def figure(draw: Draw) -> Draw:
    """`draw` with its table and its axes checked before anything is drawn."""

    @wraps(draw)
    def checked(df: Any, ax: Any = None, **keywords: Any) -> Axes:
        _check(draw.__name__, df, ax)
        return draw(df, ax, **keywords)

    return cast(Draw, checked)


def _check(name: str, df: object, ax: object) -> None:
    if not isinstance(df, pd.DataFrame):
        raise UserError(f"{name}: needs a pandas DataFrame with a row per run, found {type(df).__name__}")
    if not len(df):
        raise UserError(f"{name}: the table has no rows")
    if ax is not None and not isinstance(ax, Axes):
        hint = ""
        if isinstance(ax, np.ndarray | list | tuple):
            hint = "; pick one of them, as in axes[0, 0]"
        elif isinstance(ax, FigureBase):
            hint = "; take figure.add_subplot()"
        raise UserError(f"{name}: ax must be a matplotlib Axes, found {type(ax).__name__}{hint}")


def needed_fit(fit: object, name: str) -> Fit:
    """The fit that was given; UserError where there is none."""
    if isinstance(fit, Fit):
        return fit
    found = "" if fit is None else f", found {type(fit).__name__}"
    raise UserError(f"{name}: needs fit=, a law fitted to this table as by fit('chinchilla', df){found}")


def seen_by(fit: Fit, df: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """Which rows the law was fitted to: those with inputs and loss of one of its points, whatever their index."""
    inputs = [*fit.law.columns, fit.y]
    own = pd.DataFrame({each: pd.to_numeric(df[column(df, each, name)], errors="coerce") for each in inputs})
    points = pd.MultiIndex.from_frame(fit.points[inputs].astype(float))
    return pd.Series(pd.MultiIndex.from_frame(own.astype(float)).isin(points), index=df.index)


def fitted_part(df: pd.DataFrame, fit: Fit, name: str) -> pd.DataFrame:
    """The rows of `df` the law was fitted to, with `residual`, ln measured - ln predicted; UserError where none is."""
    part = df[seen_by(fit, df, name) & finished(df)]
    if not len(part):
        raise UserError(f"{name}: none of the rows that the law was fitted to is in this table; give the one fitted")
    predicted = fit.law.predict(fit.params, read_inputs(fit.law, part, name))
    measured = part[column(part, fit.y, name)].to_numpy(dtype=float)
    return part.assign(residual=np.log(measured) - np.log(predicted))
