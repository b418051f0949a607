"""A finished fit: parameters with intervals, predictions, residuals, and what to know before quoting it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis.coordinates import read_inputs
from experiments.analysis.laws import Array, Law

FLOOR_IS_ZERO = 1e-3  # a floor below this share of the lowest loss is not told from zero
COLLINEAR = 1e9  # condition number of J'J from which the inputs move together as far as the fit can tell


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to a table. `points`: the rows used (id, law's columns, y, predicted, residual = ln measured - ln
    predicted). `dropped`: the rows left out, with the reason. `draws`: one row of parameters per bootstrap resample."""

    law: Law
    y: str
    loss: str
    delta: float
    params: Mapping[str, float]
    draws: pd.DataFrame
    points: pd.DataFrame
    dropped: pd.DataFrame
    objective: float
    converged: bool
    reason: str
    starts: int
    starts_agreeing: int
    condition: float
    draws_converged: float
    cluster: str | None
    seed: int

    @property
    def residuals(self) -> "pd.Series[float]":
        """ln measured - ln predicted at each point used."""
        return self.points["residual"]

    @property
    def stderr(self) -> dict[str, float]:
        """Standard deviation of each parameter over the bootstrap; NaN without one."""
        return {name: float(self.draws[name].std(ddof=1)) for name in self.params}

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Percentile interval of each parameter over the bootstrap: columns lower, upper; a row per parameter."""
        bounds = [_percentiles(self.draws[name].to_numpy(), level) for name in self.params]
        return pd.DataFrame(bounds, columns=["lower", "upper"], index=pd.Index(list(self.params), name="parameter"))

    def predict(self, table: pd.DataFrame, interval: float = 0.95) -> pd.DataFrame:
        """`predicted`, `lower`, `upper` for each row of `table` (index kept): where one new run's loss should lie.

        The interval is made of every bootstrap draw combined with every residual of the fit (at most 64 quantiles of
        them), widened by sqrt(n / (n - parameters)) because fitted residuals are smaller than the noise.
        """
        inputs = read_inputs(self.law, table, "predict")
        predicted = self.law.predict(self.params, inputs)
        lower = upper = np.full(len(inputs), np.nan)
        if len(self.draws):
            spread = self.law.predict({name: self.draws[name].to_numpy() for name in self.params}, inputs)
            n, size = len(self.points), len(self.params)
            middles = (np.arange(min(n, 64)) + 0.5) / min(n, 64)
            noise = np.quantile(self.residuals, middles, method="inverted_cdf")
            combined = spread * np.exp(noise * np.sqrt(n / (n - size)))[:, None, None]
            lower, upper = _percentiles(combined.reshape(-1, len(inputs)), interval)
        return pd.DataFrame({"predicted": predicted, "lower": lower, "upper": upper}, index=table.index)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before quoting this fit: parameters the data do not identify, doubtful convergence."""
        return _notes(self)

    def summary(self) -> str:
        """The fit as a block of plain text."""
        lines = [f"{self.y} = {self.law.formula}", f"  {self.law.source}", *self._parameter_lines()]
        loss = f"huber(delta={self.delta:g})" if self.loss == "huber" else self.loss
        lines.append(f"  loss {loss} on ln {self.y}, summed: {self.objective:.6g}; {self.reason}")
        excluded = int(self.dropped["reason"].astype(str).str.startswith("excluded: ").sum())
        by_hand = f" ({excluded} excluded by hand)" if excluded else ""
        lines.append(f"  {len(self.points)} points used, {len(self.dropped)} dropped{by_hand}; {self.starts_agreeing} "
                     f"of {self.starts} starts agree; condition number {self.condition:.2g}")  # fmt: skip
        by = f"clustered by {self.cluster}, " if self.cluster else ""
        if len(self.draws):
            resamples = f"{len(self.draws)} pairs-bootstrap resamples"
            lines.append(f"  intervals: 95 % percentile, {resamples}, {by}seed {self.seed}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _parameter_lines(self) -> list[str]:
        rows = zip(self.params.items(), self.conf_int().to_numpy(), strict=True)
        return [
            f"  {name:<6} {value:<11.5g} [{lower:.5g}, {upper:.5g}]  {self.law.unit(name)}"
            for (name, value), (lower, upper) in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the draws, ready for JSON (NaN as None)."""
        intervals = self.conf_int()
        parameters = {
            name: {
                "value": _plain(value),
                "stderr": _plain(self.stderr[name]),
                "lower": _plain(intervals.at[name, "lower"]),
                "upper": _plain(intervals.at[name, "upper"]),
                "unit": self.law.unit(name),
            }
            for name, value in self.params.items()
        }
        return {
            "law": self.law.name, "formula": self.law.formula, "source": self.law.source, "y": self.y,
            "columns": list(self.law.columns), "parameters": parameters,
            "loss": self.loss, "delta": self.delta if self.loss == "huber" else None, "objective": self.objective,
            "converged": self.converged, "reason": self.reason,
            "starts": self.starts, "starts_agreeing": self.starts_agreeing, "condition": _plain(self.condition),
            "bootstrap": len(self.draws), "bootstrap_converged": _plain(self.draws_converged),
            "cluster": self.cluster, "seed": self.seed,
            "points_used": len(self.points), "points_dropped": len(self.dropped),
            "dropped": self.dropped.to_dict(orient="records"), "notes": list(self.notes),
        }  # fmt: skip


def _notes(result: Fit) -> tuple[str, ...]:
    """Warnings in words, most important first."""
    notes: list[str] = []
    if not result.converged:
        notes.append(f"the optimiser did not converge ({result.reason}): do not use these numbers")
    if result.draws_converged < 0.95:
        notes.append(f"only {result.draws_converged:.0%} of the bootstrap resamples converged: distrust the intervals")
    if result.condition > COLLINEAR:
        inputs = " and ".join(result.law.columns)
        notes.append(f"condition number {result.condition:.1e}: {inputs} hardly move apart in these runs, "
                     "so single parameters are not identified even where predictions are")  # fmt: skip
    for name, value in result.params.items():
        notes += _parameter_notes(result, name, value)
    return tuple(notes)


def _parameter_notes(result: Fit, name: str, value: float) -> list[str]:
    """Is this parameter held by a bound, or spread over more than the data can say?"""
    lower, upper = _percentiles(result.draws[name].to_numpy(), 0.95)
    lowest = float(result.points[result.y].min())
    if name == result.law.floor and value < FLOOR_IS_ZERO * lowest:
        return [f"{name} sits at its bound 0: these runs show no floor, the loss falls as fast as a pure power law"]
    if name == result.law.floor and (lower < FLOOR_IS_ZERO * lowest or upper > 2 * lower):
        reach = "reaches down to 0" if lower < 0.01 * lowest else f"runs from {lower:.3g} to {upper:.3g}"
        return [f"{name} is not identified: its 95 % interval {reach}"]
    if name in result.law.exponents and (value < 1e-6 or value > 8.0 - 1e-6):
        return [f"{name} sits at its bound {value:.3g}: the loss does not follow this law along that input"]
    if name in result.law.exponents and (lower < 1e-3 or upper > 10 * lower):
        return [f"{name} is not identified: its 95 % interval runs from {lower:.3g} to {upper:.3g}"]
    if name in result.law.coefficients and upper > 10 * lower:
        return [f"{name} is not identified on its own: its 95 % interval runs from {lower:.3g} to {upper:.3g} (it is "
                "its term at an input of 1, far outside the data); predictions can still be good"]  # fmt: skip
    return []


def _percentiles(draws: Array, level: float) -> tuple[Any, Any]:
    """Lower and upper percentile over the first axis; NaN without draws."""
    if not len(draws):
        return np.nan, np.nan
    tail = 50.0 * (1.0 - level)
    lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return lower, upper


def _plain(value: Any) -> float | None:
    """A JSON number, None where it is not finite."""
    return float(value) if np.isfinite(value) else None
