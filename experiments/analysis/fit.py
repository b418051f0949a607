"""Fitting a law to a table of runs.

Choices made here, each the answer to a measured trap: residuals are taken on ln L; the loss is summed, not averaged (an
average stops optimisers early); coefficients are fitted as logarithms through a log-sum-exp in centred coordinates;
several starts come from variable projection; the optimum is one to a relative 1e-12; every bootstrap resample is
started from more than one point.
"""

from typing import Literal

import numpy as np
import pandas as pd

from experiments.analysis.columns import column, excluded, finished, row_names
from experiments.analysis.fitted import Fit, Method
from experiments.analysis.laws import Array, Law, make_law
from experiments.analysis.noise import noise_of
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.resample import RESAMPLES, Objective, Plan, Resample, resample_fit
from experiments.analysis.solver import solve
from experiments.analysis.where import select
from nanogpt.config import UserError, did_you_mean

Loss = Literal["huber", "lad", "lsq"]
LOSSES = ("huber", "lad", "lsq")
AGREE = {"huber": 1e-20, "lsq": 1e-20, "lad": 1e-9}  # per point: objectives this close are the same optimum


def fit(
    law: Law | str,
    df: pd.DataFrame,
    *,
    loss: Loss = "huber",
    delta: float = 1e-3,
    y: str = "val_loss",
    where: str | None = None,
    bootstrap: int = 200,
    cluster: str | None = None,
    seed: int = 0,
    resample: Resample | None = None,
    intervals: Method = "bootstrap",
    keep: tuple[str, ...] = (),
) -> Fit:
    """Fit `law` to the rows of `df` that finished and pass `where`, minimising the summed `loss` of ln L residuals.

    `loss`: "huber" (threshold `delta`, in ln L), "lad" (sum of absolute values) or "lsq" (half the sum of squares).
    `resample`: "residual" (default: fresh noise on the fitted losses, alike in all runs) or "pairs" (runs drawn with
    replacement; the default where `cluster` names a column whose equal values, runs of one trunk, say, are drawn
    together). `intervals`: "bootstrap" or "profile". Deterministic for a `seed`.
    `keep`: further columns to carry into `Fit.points`.
    Raises UserError in one line: unknown column or loss, fewer points than parameters + 1, values without a logarithm,
    an input with a single value.
    """
    law = make_law(law) if isinstance(law, str) else law
    if loss not in LOSSES:
        raise UserError(f"fit: loss {loss!r} is not known{did_you_mean(loss, LOSSES)}")
    if not delta > 0:
        raise UserError(f"fit: delta must be positive, found {delta!r}")
    used, dropped = _choose_rows(law, df, y, where, (*([cluster] if cluster else []), *keep))
    _refuse_unfittable(law, used, y, len(dropped))
    law = law.bind(used)
    problem = make_problem(law, used, y)
    first = problem.starts()
    point = solve(problem, first, np.ones((1, len(used))), loss, delta)
    theta = point.theta[[point.best]]
    objective = Objective(loss, delta)
    noise = noise_of(-problem.residuals(theta), problem.model.expand(theta).jacobian, objective.threshold)
    how = _resample_kind(resample, cluster)
    plan = Plan(how, bootstrap, cluster, seed)
    draws = resample_fit(problem, theta, point.theta, noise, objective, used, plan)
    used["predicted"] = np.exp(problem.model.log_loss(theta)[0])
    used["residual"] = -problem.residuals(theta)[0]
    reason = "converged" if point.converged[point.best] else f"stopped after {point.iterations} iterations"
    agreeing = int(np.sum(point.objective <= point.objective[point.best] * (1 + 1e-6) + AGREE[loss] * len(used)))
    return Fit(
        law=law, y=y, loss=loss, delta=delta,
        params={name: float(values[0]) for name, values in problem.natural(theta).items()},
        draws=pd.DataFrame(problem.natural(draws.theta)), scales=draws.scale, noise=noise.pool(),
        points=used, dropped=dropped,
        objective=float(point.objective[point.best]), converged=bool(point.converged[point.best]),
        reason=reason, starts=len(first), starts_agreeing=agreeing, condition=_condition(problem, theta),
        draws_converged=draws.converged, resample=how, cluster=cluster, seed=seed,
        method=intervals,
    )  # fmt: skip


def _resample_kind(asked: Resample | None, cluster: str | None) -> Resample:
    """The bootstrap asked for, or the one that suits; UserError where it cannot respect clusters."""
    if asked is not None and asked not in RESAMPLES:
        raise UserError(f"fit: resample {asked!r} is not known{did_you_mean(asked, RESAMPLES)}")
    if cluster and asked == "residual":
        raise UserError(f"fit: resample residual takes runs as independent, so it cannot go with cluster {cluster}; "
                        "pairs can")  # fmt: skip
    return asked or ("pairs" if cluster else "residual")


def _choose_rows(
    law: Law, df: pd.DataFrame, y: str, where: str | None, further: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit (id, inputs, y, further columns) and those left out (id, reason)."""
    names, done = row_names(df), finished(df)
    reason = pd.Series("", index=df.index, dtype=object)
    if not done.all():
        reason[~done] = "status " + df.loc[~done, "status"].astype(str)
    left_out = excluded(df)
    if left_out.any():
        reason[left_out] = "excluded: " + df.loc[left_out, "excluded"].astype(str)
    if where is not None:  # asked about results only: a run without one has gaps that compare with nothing
        outside = ~select(df[done], where)
        reason[outside.index[outside & (reason[done] == "")]] = f"not where {where}"
    kept = reason == ""
    data = {"id": names[kept]}
    for name in (*law.columns, *law.label_columns, y, *further):
        data[name] = df.loc[kept, column(df, name, "fit")]
    dropped = pd.DataFrame({"id": names[~kept], "reason": reason[~kept]}).reset_index(drop=True)
    return pd.DataFrame(data), dropped


def _refuse_unfittable(law: Law, used: pd.DataFrame, y: str, n_dropped: int) -> None:
    """UserError where the table cannot carry the law, before any arithmetic on it."""
    needed = len(law.parameters) + 1
    if len(used) < needed:
        raise UserError(f"fit: {law.name} has {needed - 1} parameters and needs at least {needed} points, "
                        f"found {len(used)} ({n_dropped} dropped)")  # fmt: skip
    for name in (*law.columns, y):
        values = pd.to_numeric(used[name], errors="coerce").to_numpy(dtype=float)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            i = int(np.argmax(bad))
            found = f"{name} of {used['id'].iloc[i]} is {used[name].iloc[i]}"
            raise UserError(f"fit: {found}; a fit takes logarithms, so every value must be finite and positive "
                            f"({int(bad.sum())} of {len(used)} are not)")  # fmt: skip
        used[name] = values
    for name in law.label_columns:
        if (unnamed := used[name].isna()).any():
            found = used.loc[unnamed, "id"].iloc[0]
            raise UserError(f"fit: {name} of {found} is missing; it says which variant a run belongs to "
                            f"({int(unnamed.sum())} of {len(used)} are missing)")  # fmt: skip
    if used[y].nunique() < 2:
        raise UserError(f"fit: every point has {y} = {used[y].iloc[0]:g}; a constant loss follows every law")
    for name in law.columns:
        if used[name].nunique() < 2:
            only = f"{name} = {used[name].iloc[0]:g}"
            raise UserError(f"fit: every point has {only}; {law.name} needs at least 2 values of it")
    distinct = len(used[[*law.columns, *law.label_columns]].drop_duplicates())
    if distinct < len(law.parameters):
        raise UserError(f"fit: {law.name} has {len(law.parameters)} parameters and needs as many different "
                        f"({', '.join(law.columns)}), found {distinct}")  # fmt: skip


def _condition(problem: Problem, theta: Array) -> float:
    """Condition number of J'J at the optimum, in centred logarithmic coordinates: above 1e9 inputs move together."""
    return float(np.linalg.cond(problem.model.expand(theta).jacobian[0]) ** 2)
