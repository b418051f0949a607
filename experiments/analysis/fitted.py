"""A finished fit: parameters with intervals, predictions, residuals, and what to know before quoting it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from experiments.analysis import arguments, identified, intervals
from experiments.analysis.bounds import End, ends
from experiments.analysis.checklist import checklist
from experiments.analysis.coordinates import read_inputs
from experiments.analysis.laws import Array, Law
from experiments.analysis.misfit import Misfit, misfit
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.profile import Profile, profile
from experiments.analysis.readonly import ReadOnly
from nanogpt.config import UserError, did_you_mean

if TYPE_CHECKING:
    from experiments.analysis.rollout import Rollout

Method = Literal["bootstrap", "profile"]
METHODS = get_args(Method)


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to a table. `points`: the rows used (id, law's columns, y, predicted, residual = ln measured - ln
    predicted). `dropped`: the rows left out, with the reason. `draws`: parameters, a row per bootstrap resample, and
    `scales`: the noise level of each as a multiple of the fit's. `noise`: the residuals at the size of the noise.
    `resample`: residual | pairs; `method`: which intervals `conf_int` gives, bootstrap | profile; `on`: what was
    minimised, misses of ln L or of L itself (on_loss.py); `warnings`: what is suspect about the table, in words;
    `independent`: no clusters and no two points of one run. Its mappings are read-only."""

    law: Law
    y: str
    loss: str
    delta: float
    params: Mapping[str, float]
    draws: pd.DataFrame
    scales: Array
    noise: Array
    points: pd.DataFrame
    dropped: pd.DataFrame
    objective: float
    converged: bool
    reason: str
    starts: int
    starts_agreeing: int
    condition: float
    draws_converged: float
    resample: str
    cluster: str | None
    seed: int
    method: Method = "bootstrap"
    on: Literal["ln L", "L"] = "ln L"
    warnings: tuple[str, ...] = ()
    independent: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", ReadOnly(self.params))

    def __getstate__(self) -> dict[str, Any]:
        """What is worked out on demand stays behind: it can be had again, and some of it does not pickle."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def residuals(self) -> "pd.Series[float]":
        """ln measured - ln predicted at each point used."""
        return self.points["residual"]

    @property
    def stderr(self) -> Mapping[str, float]:
        """Standard deviation of each parameter over the bootstrap; NaN without one."""
        return ReadOnly({name: float(self.draws[name].std(ddof=1)) for name in self.params})

    def conf_int(self, level: float = 0.95, method: Method | None = None) -> pd.DataFrame:
        """Interval of each parameter: columns lower, upper; a row per parameter. By `method` (default: the fit's own):
        percentiles of the bootstrap (NaN without draws), or the profile (0 or infinite where the data set no end).
        UserError for a level outside (0, 1) and an unknown method."""
        names, level = list(self.params), arguments.level_of(level, "conf_int")
        chosen = self.method if method is None else arguments.one_of(method, METHODS, "conf_int", "method")
        if chosen == "bootstrap":
            return intervals.of_parameters(self.draws, names, level)
        ends = [(self.profile(name, level).lower, self.profile(name, level).upper) for name in names]
        return pd.DataFrame(ends, columns=["lower", "upper"], index=pd.Index(names, name="parameter"))

    def profile(self, name: str, level: float = 0.95) -> Profile:
        """How the objective rises when `name` is held at other values; UserError for an unknown parameter, and for a
        fit on L, whose noise is not known."""
        level = arguments.level_of(level, "profile")
        if arguments.text_of(name, "profile", "name", "the symbol of a parameter") not in self.params:
            raise UserError(f"profile: {self.law.name} has no parameter {name!r}{did_you_mean(name, self.params)}")
        if self.on == "L":
            raise UserError(f"profile: this law was fitted to {self.y} itself; a profile needs a fit to ln {self.y}")
        if (name, level) not in self._profiles:
            self._profiles[name, level] = profile(self, name, level)
        return self._profiles[name, level]

    @cached_property
    def _profiles(self) -> dict[tuple[str, float], Profile]:
        """Those made so far: each takes some hundred refits."""
        return {}

    @cached_property
    def identified(self) -> Mapping[str, bool]:
        """Whether the data identify each parameter; `notes` says why not."""
        return ReadOnly(identified.identified(self))

    @cached_property
    def problem(self) -> Problem:
        """What was solved: the law at the points used, in centred coordinates."""
        return make_problem(self.law, self.points, self.y)

    @property
    def theta(self) -> Array:
        """The parameters as coordinates of `problem`, (1, parameters), inside its box."""
        with np.errstate(divide="ignore"):  # a parameter that underflowed is at the end of its box
            theta = self.problem.coordinates(self.params)
        return np.clip(theta, self.problem.lower, self.problem.upper)

    @cached_property
    def at_ends(self) -> Mapping[str, End]:
        """The parameters at an end of the box they were looked for in, and which end."""
        return ReadOnly(ends(self.problem, self.theta))

    @cached_property
    def misfit(self) -> Misfit | None:
        """Whether the law bends away from its data; None where no test of that can be made."""
        return misfit(self)

    def predict(self, table: pd.DataFrame | Mapping[str, Any], interval: float = 0.95) -> pd.DataFrame:
        """`predicted`, `lower`, `upper` for each row of `table` (index kept): where one new run's loss should lie.

        The interval is made of every bootstrap draw combined with every residual of the fit at the size of the noise
        (`noise`, at most 64 quantiles of them) times the draw's noise level, which has Student's tails.
        Raises UserError: no table, a missing column, a value that is no number or has no logarithm, an interval
        outside (0, 1).
        """
        table, interval = arguments.table_of(table, "predict"), arguments.level_of(interval, "predict", "interval")
        inputs = read_inputs(self.law, table, "predict")
        predicted = self.law.predict(self.params, inputs)
        lower = upper = np.full(len(inputs), np.nan)
        if len(self.draws):
            spread = self.law.predict({name: self.draws[name].to_numpy() for name in self.params}, inputs)
            lower, upper = intervals.of_new_runs(spread, self.noise, self.scales, interval)
        return pd.DataFrame({"predicted": predicted, "lower": lower, "upper": upper}, index=table.index)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before quoting this fit: parameters the data do not identify, doubtful convergence."""
        return identified.notes(self)

    def summary(self) -> str:
        """The fit as a block of plain text."""
        lines = [f"{self.y} = {self.law.formula}", f"  {self.law.source}", *self._parameter_lines()]
        loss = f"huber(delta={self.delta:g})" if self.loss == "huber" else self.loss
        lines.append(f"  loss {loss} on {self.target}, summed: {self.objective:.6g}; {self.reason}")
        excluded = int(self.dropped["reason"].astype(str).str.startswith("excluded: ").sum())
        by_hand = f" ({excluded} excluded by hand)" if excluded else ""
        lines.append(f"  {len(self.points)} points used, {len(self.dropped)} dropped{by_hand}; {self.starts_agreeing} "
                     f"of {self.starts} starts agree; condition number {self.condition:.2g}")  # fmt: skip
        lines.append(f"  intervals: {self._intervals()}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def target(self) -> str:
        """What the loss was taken on: `ln val_loss`."""
        return self.y if self.on == "L" else f"ln {self.y}"

    def _intervals(self) -> str:
        """How the intervals were made."""
        if self.method == "profile":
            return "95 % profile likelihood"
        if not len(self.draws):
            return "none: bootstrap=0"
        by = f"clustered by {self.cluster}, " if self.cluster else ""
        return f"95 % percentile, {len(self.draws)} {self.resample}-bootstrap resamples, {by}seed {self.seed}"

    def _parameter_lines(self) -> list[str]:
        rows = zip(self.params.items(), self.conf_int().to_numpy(), strict=True)
        return [
            f"  {name:<6} {value:<11.5g} {intervals.text(lower, upper, '{:.5g}')}  {self.law.unit(name)}"
            for (name, value), (lower, upper) in rows
        ]

    def to_dict(self, rollout: "Rollout | None" = None) -> dict[str, Any]:
        """Everything but the draws, ready for JSON (NaN as None), with the details that a paper must report; `rollout`:
        the held-out error that stands beside this fit."""
        intervals = self.conf_int()
        parameters = {
            name: {
                "value": _plain(value),
                "stderr": _plain(self.stderr[name]),
                "lower": _plain(intervals.at[name, "lower"]),
                "upper": _plain(intervals.at[name, "upper"]),
                "unit": self.law.unit(name),
                "identified": self.identified[name],
            }
            for name, value in self.params.items()
        }
        return {
            "law": self.law.name, "formula": self.law.formula, "source": self.law.source, "y": self.y,
            "columns": list(self.law.columns), "parameters": parameters,
            "loss": self.loss, "on": self.on, "delta": self.delta if self.loss == "huber" else None,
            "objective": self.objective,
            "converged": self.converged, "reason": self.reason,
            "starts": self.starts, "starts_agreeing": self.starts_agreeing, "condition": _plain(self.condition),
            "intervals": self.method, "resample": self.resample, "bootstrap": len(self.draws),
            "bootstrap_converged": _plain(self.draws_converged),
            "cluster": self.cluster, "seed": self.seed,
            "points_used": len(self.points), "points_dropped": len(self.dropped),
            "dropped": self.dropped.to_dict(orient="records"), "at_bounds": dict(self.at_ends),
            "misfit": vars(self.misfit) | {"bends": self.misfit.bends} if self.misfit is not None else None,
            "notes": list(self.notes), "checklist": [dict(vars(item)) for item in checklist(self, rollout)],
        }  # fmt: skip


def _plain(value: Any) -> float | None:
    """A JSON number, None where it is not finite."""
    return float(value) if np.isfinite(value) else None
