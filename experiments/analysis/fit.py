"""Fitting a law to a table of runs.

Choices made here, each the answer to a measured trap: residuals are taken on ln L; the loss is summed, not averaged (an
average stops optimisers early); coefficients are fitted as logarithms through a log-sum-exp in centred coordinates;
several starts come from variable projection; the optimum is one to a relative 1e-12; every bootstrap resample is
started from more than one point.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.bounds import free_parameters
from experiments.analysis.columns import column, excluded, finished, row_names
from experiments.analysis.fitted import METHODS, Fit, Method
from experiments.analysis.laws import Array, Law
from experiments.analysis.noise import noise_of
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.resample import RESAMPLES, Objective, Plan, Resample, resample_fit
from experiments.analysis.solver import solve
from experiments.analysis.suspects import checked_units, repeated_rows, shared_ids
from experiments.analysis.where import select
from nanogpt.config import UserError

Loss = Literal["huber", "lad", "lsq"]
LOSSES = ("huber", "lad", "lsq")
AGREE = {"huber": 1e-20, "lsq": 1e-20, "lad": 1e-9}  # per point: objectives this close are the same optimum


def fit(
    law: Law | str,
    df: pd.DataFrame | Mapping[str, Any],
    *,
    loss: Loss = "huber",
    delta: float = 1e-3,
    y: str = "val_loss",
    where: str | None = None,
    bootstrap: int = 200,
    cluster: str | None = None,
    seed: int = 0,
    resample: Resample | None = None,
    intervals: Method | None = None,
    keep: Sequence[str] = (),
    trust_units: bool = False,
) -> Fit:
    """Fit `law` to the rows of `df` that finished and pass `where`, minimising the summed `loss` of ln L residuals.

    `df`: a DataFrame or a mapping of columns. `loss`: "huber" (threshold `delta`, in ln L), "lad" (sum of absolute
    values) or "lsq" (half the sum of squares). `resample`: "residual" (default: fresh noise on the fitted losses, alike
    in all runs) or "pairs" (runs drawn with replacement; the default where `cluster` names a column whose equal values,
    points of one run, say, are drawn together). `intervals`: "bootstrap" or "profile"; by default the law's own, which
    is known to cover (`Law.interval`), but the bootstrap with `cluster` and none with `bootstrap=0`. Deterministic for
    a `seed`. `keep`: further columns to carry into `Fit.points`. `trust_units`: fit although units seem to be mixed.
    Raises UserError in one line: an argument of another kind or out of range, an unknown column or name, fewer points
    than parameters + 1, values without a logarithm, an input with a single value, units mixed in a column.
    """
    law, table = arguments.law_of(law, "fit"), arguments.own_index(arguments.table_of(df, "fit"))
    _check_choices(loss, delta, seed, trust_units)
    plan = Plan(_resample_kind(resample, cluster), arguments.resamples(bootstrap, "fit"), cluster, seed)
    method = _method(intervals, law, plan)
    used, dropped = _choose_rows(law, table, y, where, _further(cluster, keep))
    _refuse_unfittable(law, used, y, cluster, len(dropped))
    warnings = _suspicions(law, used, y, cluster, trust_units)
    law = law.bind(used)
    problem = make_problem(law, used, y)
    first = problem.starts()
    point = solve(problem, first, np.ones((1, len(used))), loss, delta)
    theta = point.theta[[point.best]]
    objective = Objective(loss, delta)
    noise = noise_of(-problem.residuals(theta), problem.model.expand(theta).jacobian, objective.threshold)
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
        draws_converged=draws.converged, resample=plan.how, cluster=cluster, seed=seed,
        method=method, warnings=warnings,
        independent=cluster is None and not used["id"].duplicated().any(),
    )  # fmt: skip


def _check_choices(loss: Any, delta: Any, seed: Any, trust_units: Any) -> None:
    arguments.one_of(loss, LOSSES, "fit", "loss")
    arguments.above_zero(delta, "fit", "delta")
    arguments.whole(seed, "fit", "seed")
    arguments.switch(trust_units, "fit", "trust_units")


def _resample_kind(asked: Resample | None, cluster: str | None) -> Resample:
    """The bootstrap asked for, or the one that suits; UserError where it cannot respect clusters."""
    if cluster is not None:
        arguments.text_of(cluster, "fit", "cluster")
    if asked is not None:
        arguments.one_of(asked, RESAMPLES, "fit", "resample")
    if cluster and asked == "residual":
        raise UserError(f"fit: resample residual takes runs as independent, so it cannot go with cluster {cluster}; "
                        "pairs can")  # fmt: skip
    return asked or ("pairs" if cluster else "residual")


def _method(asked: Method | None, law: Law, plan: Plan) -> Method:
    """The intervals asked for, or those that are known to cover for this law and can be had."""
    if asked is None:
        return law.interval if plan.draws and not plan.cluster else "bootstrap"
    arguments.one_of(asked, METHODS, "fit", "intervals")
    if asked == "profile" and plan.cluster:
        raise UserError(f"fit: intervals profile take runs as independent, so they cannot go with cluster "
                        f"{plan.cluster}; bootstrap can")  # fmt: skip
    return asked


def _further(cluster: str | None, keep: Any) -> tuple[str, ...]:
    """The columns beside the law's own that are carried along."""
    if isinstance(keep, str) or not isinstance(keep, Sequence):
        raise UserError(f"fit: keep must be a list of columns, found {keep!r}")
    return (*([cluster] if cluster else []), *(arguments.text_of(name, "fit", "keep") for name in keep))


def _suspicions(law: Law, used: pd.DataFrame, y: str, cluster: str | None, trust: bool) -> tuple[str, ...]:
    """What a reader should know of the table; UserError for units that are surely mixed and not trusted."""
    units = checked_units(used.set_index("id"), law.columns, y, "fit", trust, "trust_units=True")
    same = repeated_rows(used, [*law.columns, *law.label_columns, y])
    return (*units, *same, *shared_ids(used, "id", cluster))


def _choose_rows(
    law: Law, df: pd.DataFrame, y: str, where: str | None, further: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit (id, inputs, y, further columns) and those left out (id, reason)."""
    _check_names(law, y, where)
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


def _check_names(law: Law, y: Any, where: Any) -> None:
    """UserError for columns that stand for two things at once, and for names that are none."""
    arguments.text_of(y, "fit", "y")
    if where is not None:
        arguments.text_of(where, "fit", "where", "a filter such as 'tokens > 1e6'")
    chosen = {name: getattr(law, name) for name in law.inputs()}
    for name, column_name in chosen.items():
        other = next((each for each, also in chosen.items() if each != name and also == column_name), None)
        if other is not None or column_name == y:
            raise UserError(f"fit: {name} and {other or 'y'} are both the column {column_name!r}")
    taken = {"predicted", "residual"} & {y, *chosen.values()}
    if taken:
        raise UserError(f"fit: the column {taken.pop()!r} has a name that the fit's own table needs; rename it")


def _refuse_missing(used: pd.DataFrame, name: str, why: str) -> None:
    if (missing := used[name].isna()).any():
        found = used.loc[missing, "id"].iloc[0]
        raise UserError(f"fit: {name} of {found} is missing; {why} ({int(missing.sum())} of {len(used)} are missing)")


def _refuse_unfittable(law: Law, used: pd.DataFrame, y: str, cluster: str | None, n_dropped: int) -> None:
    """UserError where the table cannot carry the law, before any arithmetic on it."""
    needed = len(law.parameters) + 1
    if len(used) < needed:
        raise UserError(f"fit: {law.name} has {needed - 1} parameters and needs at least {needed} points, "
                        f"found {len(used)} ({n_dropped} dropped)")  # fmt: skip
    for name in (*law.columns, y):
        used[name] = arguments.numbers(used[name], used["id"].to_list(), "fit", advice=arguments.LEAVE_OUT)
    for name in law.label_columns:
        _refuse_missing(used, name, "it says which variant a run belongs to")
    if cluster is not None:
        _refuse_missing(used, cluster, "it says which runs are drawn together")
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
    """Condition number of J'J at the optimum, in centred logarithmic coordinates: above 1e9 some parameters cannot be
    told apart. Of those only that are free to move: a term at its bound, and so without effect, is another matter."""
    jacobian = problem.model.expand(theta).jacobian[0]
    free = free_parameters(problem, theta)
    return float(np.linalg.cond(jacobian[:, free]) ** 2) if free.any() else float("inf")
