"""Approaches 1, 2 and 3 side by side: the compute-optimal size and tokens by each, and what the counting does to them.

Every approach runs under every accounting the table can give: N with and without embeddings, FLOPs as spent and as
6 N D. They need not agree: on the published tables of Porian et al. 2024 the way of reading the minimum alone moves the
exponent of N by up to .15, and the accounting by .13. So none is reported alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column
from experiments.analysis.envelope import Envelope, envelope
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.frontier import Optimal, optimal_on
from experiments.analysis.isoflop import WINDOW, IsoFlops, Method, isoflop
from experiments.analysis.laws import Array, Chinchilla
from experiments.analysis.observations import Accounting, Observations, observe
from experiments.analysis.powerline import PowerLine, fit_line, percentiles
from nanogpt.config import UserError

Name = Literal["envelope", "parabola", "akima", "surface"]
TITLES: dict[Name, str] = {
    "envelope": "1, envelope",
    "parabola": "2, parabola",
    "akima": "2, Akima",
    "surface": "3, surface",
}
COMPUTES = 9  # where the optimum of a fitted surface is read for its power law


@dataclass(frozen=True, eq=False)
class Surface:
    """Approach 3: a fitted law and its optima at some computes (flops, n, d, loss, beyond: outside the sizes)."""

    fit: Fit
    table: pd.DataFrame
    n_line: PowerLine
    d_line: PowerLine


@dataclass(frozen=True, eq=False)
class Approach:
    """One approach under one accounting: its result, or the reason why there is none."""

    name: Name
    accounting: Accounting
    result: Envelope | IsoFlops | Surface | None
    refused: str = ""


@dataclass(frozen=True, eq=False)
class Approaches:
    """All of them, the study's own accounting first. `at`: the compute for which sizes are quoted, in FLOPs as each
    accounting counts them; `observations`: what the first accounting saw."""

    items: tuple[Approach, ...]
    at: float
    observations: Observations

    def get(self, name: Name) -> Approach | None:
        """An approach under the study's own accounting."""
        return next((item for item in self.items if item.name == name and item.accounting == self.main), None)

    @property
    def main(self) -> Accounting:
        """The study's own way to count."""
        return self.observations.accounting

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """A row per approach and accounting: approach, n_counts, compute, a (exponent of N), b (of D) with bounds, N, D
        and tokens per parameter at `at` with bounds, budgets, refused."""
        return pd.DataFrame([_row(item, self.at, level) for item in self.items])


def compare_approaches(
    runs: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    n: str = "n_params_non_embedding",
    d: str = "tokens",
    flops: str = "flops",
    y: str = "val_loss",
    where: str | None = None,
    budgets: Sequence[float] | int | None = None,
    noise: float | Callable[[Array], Array] | None = None,
    window: int | None = WINDOW,
    at: float | None = None,
    draws: int = 400,
    seed: int = 0,
    law: dict[str, Any] | None = None,
    fitted: Fit | None = None,
) -> Approaches:
    """Envelope, IsoFLOP minima by parabola and by Akima, and surface, under every accounting `runs` has columns for.

    With `curves`, approaches 1 and 2 read training curves, which suits a constant learning rate; the surface is always
    fitted to final losses. `law`: further options of `fit` for the surface; `fitted`: the surface of the study's own
    accounting where there is one. `at`: compute to quote; default the largest one measured.
    Raises UserError where the table cannot be read at all; an approach that fails says why in its row.
    """
    runs = arguments.own_index(arguments.table_of(runs, "approaches"))
    if curves is not None:
        curves = arguments.own_index(arguments.table_of(curves, "approaches", "curves"))
    _check_options(budgets, noise, window, at, draws, seed)
    columns: dict[str, Any] = {"d": column(runs, d, "approaches"), "flops": flops, "y": column(runs, y, "approaches")}
    columns["where"] = where
    accountings = _accountings(runs, column(runs, n, "approaches"), columns["d"], flops)
    options = {"noise": noise, "draws": draws, "seed": seed}
    items: list[Approach] = []
    seen: Observations | None = None
    for accounting in accountings:
        points = observe(runs, accounting, curves=curves, **columns)
        seen = seen or points
        own = fitted if accounting == accountings[0] else None
        items += _each(runs, points, columns, options, budgets, window, law or {}, own)
    assert seen is not None
    return Approaches(tuple(items), float(at) if at is not None else float(seen.table["flops"].max()), seen)


def _check_options(
    budgets: Sequence[float] | int | None,
    noise: float | Callable[[Array], Array] | None, window: int | None, at: float | None, draws: int, seed: int,
) -> None:  # fmt: skip
    """UserError for an option that no approach could work with."""
    if window is not None:
        arguments.whole(window, "approaches", "window", 4)
    if at is not None:
        arguments.above_zero(at, "approaches", "at")
    if noise is not None and not callable(noise) and not (arguments.is_finite(noise) and noise >= 0):
        raise UserError(f"approaches: noise must be a number of at least 0 or a function of the loss, found {noise!r}")
    if isinstance(budgets, int | np.integer):
        arguments.whole(budgets, "approaches", "budgets", 3)
    elif budgets is not None:
        listed = isinstance(budgets, Sequence | np.ndarray) and not isinstance(budgets, str) and len(budgets)
        for each in budgets if listed else [budgets]:
            arguments.above_zero(each, "approaches", "each of budgets")
    arguments.whole(draws, "approaches", "draws", 0)
    arguments.whole(seed, "approaches", "seed", 0)


def _accountings(runs: pd.DataFrame, n: str, d: str, flops: str) -> list[Accounting]:
    """The study's own first, then the others that the columns allow and that differ."""
    sizes = dict.fromkeys([n, *(name for name in ("n_params_non_embedding", "n_params") if name in runs.columns)])
    if flops not in runs.columns:
        return [Accounting(size, "6ND") for size in sizes]
    found = []
    for size in sizes:
        found.append(Accounting(size, "exact"))
        by_rule = 6.0 * pd.to_numeric(runs[size], errors="coerce") * pd.to_numeric(runs[d], errors="coerce")
        if not np.allclose(by_rule, pd.to_numeric(runs[flops], errors="coerce"), rtol=1e-3, atol=0, equal_nan=True):
            found.append(Accounting(size, "6ND"))
    return found


def _each(
    runs: pd.DataFrame, points: Observations, columns: dict[str, Any], options: dict[str, Any],
    budgets: Sequence[float] | int | None, window: int | None, law: dict[str, Any], fitted: Fit | None,
) -> list[Approach]:  # fmt: skip
    """The four under one accounting."""

    def iso(method: Method) -> IsoFlops:
        # Budgets that were asked for are exact FLOPs, which 6 N D counts differently.
        asked = budgets if points.accounting.compute == "exact" or isinstance(budgets, int) else None
        return isoflop(points, method, budgets=asked, window=window, **options)

    return [
        _attempt("envelope", points.accounting, lambda: envelope(points, **options)),
        _attempt("parabola", points.accounting, lambda: iso("parabola")),
        _attempt("akima", points.accounting, lambda: iso("akima")),
        _attempt("surface", points.accounting, lambda: fit_surface(runs, points, columns, law, fitted)),
    ]


def _attempt(name: Name, accounting: Accounting, do: Callable[[], Envelope | IsoFlops | Surface]) -> Approach:
    try:
        return Approach(name, accounting, do())
    except UserError as error:
        return Approach(name, accounting, None, str(error))


def fit_surface(
    runs: pd.DataFrame, points: Observations, columns: dict[str, Any], law: dict[str, Any], fitted: Fit | None = None
) -> Surface:
    """A Chinchilla law fitted to the final losses, and its optima over the computes that were measured."""
    sizes = Chinchilla(n=points.accounting.n, d=columns["d"])
    if fitted is None or fitted.law != sizes or fitted.y != columns["y"]:
        fitted = fit(sizes, runs, y=columns["y"], where=columns["where"], **law)
    compute = points.table["flops"]
    flops = np.geomspace(compute.min(), compute.max(), COMPUTES)
    found = optimal_on(fitted, points.cost(), flops)
    table = pd.DataFrame({"flops": flops, "n": found.n, "d": found.d, "loss": found.loss})
    table["beyond"] = ~table["n"].between(points.sizes.min(), points.sizes.max())
    return Surface(fitted, table, *_surface_lines(flops, found))


def _surface_lines(flops: Array, found: Optimal) -> tuple[PowerLine, PowerLine]:
    lines = (
        fit_line(flops, found.n, draws=(flops, found.n_draws)),
        fit_line(flops, found.d, draws=(flops, found.d_draws)),
    )
    # Nine points of one smooth curve scatter by nothing: the bootstrap alone says how uncertain they are.
    return replace(lines[0], scatter=float("nan")), replace(lines[1], scatter=float("nan"))


def _row(item: Approach, at: float, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {"approach": TITLES[item.name], "n_counts": item.accounting.size_words,
                           "compute": item.accounting.compute}  # fmt: skip
    if item.result is None:
        return row | dict.fromkeys(_NUMBERS, float("nan")) | {"budgets": "", "refused": item.refused}
    n_line, d_line = item.result.n_line, item.result.d_line
    n, d = float(n_line.at(at)), float(d_line.at(at))
    n_draws, d_draws = n_line.draws_at(at)[:, 0], d_line.draws_at(at)[:, 0]
    pairs = min(len(n_draws), len(d_draws))
    ratio = percentiles(d_draws[:pairs] / n_draws[:pairs], level)
    numbers = (
        n_line.exponent, *n_line.conf_int(level), d_line.exponent, *d_line.conf_int(level),
        n, *percentiles(n_draws, level), d, *percentiles(d_draws, level), d / n, *ratio,
    )  # fmt: skip
    return row | dict(zip(_NUMBERS, numbers, strict=True)) | {"budgets": _budgets(item.result), "refused": ""}


_NUMBERS = tuple(
    f"{name}{end}" for name in ("a", "b", "n", "d", "tokens_per_param") for end in ("", "_lower", "_upper")
)


def _budgets(result: Envelope | IsoFlops | Surface) -> str:
    """What stands behind the line."""
    if isinstance(result, Envelope):
        return f"{result.winners} sizes win; {result.refused:.0%} of the computes refused"
    if isinstance(result, Surface):
        beyond = int(result.table["beyond"].sum())
        return f"{len(result.fit.points)} runs fitted" + (
            f"; N beyond them at {beyond} of {COMPUTES} computes" * bool(beyond)
        )
    refused = int((result.table["refused"] != "").sum())
    kind = "measured" if result.measured else "read between runs"
    unused = f"; {result.unused} points at computes of fewer than 4 sizes" if result.unused else ""
    return f"{len(result.table) - refused} of {len(result.table)} budgets, {kind}{unused}"
