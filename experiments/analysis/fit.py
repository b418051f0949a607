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
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array, Law, make_law
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.solver import huber, solve
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
    keep: tuple[str, ...] = (),
) -> Fit:
    """Fit `law` to the rows of `df` that finished and pass `where`, minimising the summed `loss` of ln L residuals.

    `loss`: "huber" (threshold `delta`, in ln L), "lad" (sum of absolute values) or "lsq" (half the sum of squares).
    `cluster`: a column whose equal values (runs of one trunk, say) are resampled together. Deterministic for a `seed`.
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
    theta = point.theta[point.best]
    weights = _resample(used, len(theta), bootstrap, cluster, seed)
    draws, draws_converged = _bootstrap(problem, theta, first, weights, loss, delta)
    params = problem.natural(theta[None])
    used["predicted"] = np.exp(problem.residuals(theta[None])[0] + problem.ln_y)
    used["residual"] = problem.ln_y - np.log(used["predicted"])
    reason = "converged" if point.converged[point.best] else f"stopped after {point.iterations} iterations"
    agreeing = int(np.sum(point.objective <= point.objective[point.best] * (1 + 1e-6) + AGREE[loss] * len(used)))
    return Fit(
        law=law, y=y, loss=loss, delta=delta,
        params={name: float(values[0]) for name, values in params.items()},
        draws=pd.DataFrame(problem.natural(draws)), points=used, dropped=dropped,
        objective=float(point.objective[point.best]), converged=bool(point.converged[point.best]),
        reason=reason, starts=len(first), starts_agreeing=agreeing, condition=_condition(problem, theta),
        draws_converged=draws_converged, cluster=cluster, seed=seed,
    )  # fmt: skip


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
    for name in law.columns:
        if used[name].nunique() < 2:
            only = f"{name} = {used[name].iloc[0]:g}"
            raise UserError(f"fit: every point has {only}; {law.name} needs at least 2 values of it")
    distinct = len(used[[*law.columns, *law.label_columns]].drop_duplicates())
    if distinct < len(law.parameters):
        raise UserError(f"fit: {law.name} has {len(law.parameters)} parameters and needs as many different "
                        f"({', '.join(law.columns)}), found {distinct}")  # fmt: skip


def _resample(used: pd.DataFrame, law_size: int, draws: int, cluster: str | None, seed: int) -> Array:
    """Multinomial weights (draws, points): how often each point, or each cluster with all its points, was drawn.

    A resample with fewer distinct points than parameters has no optimum and is drawn again.
    """
    rng = np.random.default_rng([seed, 0])
    groups = used[cluster].factorize()[0] if cluster else np.arange(len(used))
    n_groups = int(groups.max()) + 1
    if cluster and draws and n_groups < 3:
        raise UserError(f"fit: cluster {cluster} has {n_groups} distinct values; a bootstrap needs at least 3")
    weights = np.zeros((draws, len(used)))
    for i in range(draws):
        for _ in range(100):
            weights[i] = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)[groups]
            if np.count_nonzero(weights[i]) >= law_size:
                break
    return weights


def _bootstrap(
    problem: Problem, theta: Array, first: Array, weights: Array, loss: str, delta: float
) -> tuple[Array, float]:
    """Parameters of each resample (draws, parameters) and the share of resamples that converged.

    Each is solved from the point fit `theta` and from that start of `first` which suits the resample best; the better
    optimum counts. One start alone under-converges in a sixth of the resamples of published tables.
    """
    draws, size = len(weights), len(theta)
    if not draws:
        return np.zeros((0, size)), float("nan")
    misfit = np.stack([huber(problem.residuals(start[None]), weights, delta) for start in first])
    launch = np.stack([np.broadcast_to(theta, (draws, size)), first[misfit.argmin(axis=0)]])
    solution = solve(problem, launch.swapaxes(0, 1).reshape(-1, size), np.repeat(weights, 2, axis=0), loss, delta)
    pick = solution.objective.reshape(draws, 2).argmin(axis=1) + 2 * np.arange(draws)
    return solution.theta[pick], float(solution.converged[pick].mean())


def _condition(problem: Problem, theta: Array) -> float:
    """Condition number of J'J at the optimum, in centred logarithmic coordinates: above 1e9 inputs move together."""
    jacobian = problem.model.expand(theta[None]).jacobian[0]
    return float(np.linalg.cond(jacobian) ** 2)
