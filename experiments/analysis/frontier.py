"""The compute frontier: the lowest loss reached at each compute, as measured and as a fitted law has it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis import identified
from experiments.analysis.columns import column, finished
from experiments.analysis.fitted import Fit
from experiments.analysis.intervals import percentiles
from experiments.analysis.laws import Array, Chinchilla
from experiments.analysis.observations import Cost
from nanogpt.config import UserError


@dataclass(frozen=True, eq=False)
class Allocation:
    """Compute-optimal sizes. `table`: flops, n, d, loss and, with a bootstrap, n_lower, n_upper, d_lower, d_upper
    (95 %); `a` and `b`: exponents of n and d in flops (a + b = 1)."""

    table: pd.DataFrame
    a: float
    b: float


@dataclass(frozen=True, eq=False)
class Optimal:
    """Compute-optimal N, D and loss, (computes,) each, and N and D of every draw of the fit, (draws, computes)."""

    n: Array
    d: Array
    loss: Array
    n_draws: Array
    d_draws: Array


def lower_envelope(points: pd.DataFrame, x: str = "flops", y: str = "val_loss") -> pd.DataFrame:
    """The rows no cheaper row beats: sorted by `x`, strictly falling in `y` (approach 1 of Hoffmann et al. 2022).

    `points` may be runs or points of training curves; rows that did not finish or have no finite loss are passed over.
    """
    x, y = column(points, x, "envelope"), column(points, y, "envelope")
    good = points[finished(points) & np.isfinite(points[y].astype(float)) & (points[x].astype(float) > 0)]
    ordered = good.sort_values([x, y], kind="stable")
    best_before = ordered[y].astype(float).cummin().shift(1, fill_value=np.inf)
    return ordered[ordered[y] < best_before].reset_index(drop=True)


def compute_optimal(fit: Fit, flops: float | Array, flops_per_nd: float = 6.0) -> Allocation:
    """The N and D that minimise a fitted Chinchilla law at each compute C = flops_per_nd * N * D, in closed form.

    N = G (C/k)^(beta/(alpha+beta)), D = (C/k) / N, G = (alpha A / (beta B))^(1/(alpha+beta)), k = flops_per_nd
    (Hoffmann et al. 2022, arXiv 2203.15556, eq. 4). k = 6 counts no attention and no embedding: small models need the
    measured ratio. Raises UserError for another law, and for a fit that tells no optimum (`no_optimum`).
    """
    if not isinstance(fit.law, Chinchilla):
        raise UserError(f"compute_optimal: needs a chinchilla fit, found {fit.law.name}")
    if (reason := no_optimum(fit)) is not None:
        raise UserError(f"compute_optimal: {reason}")
    compute = np.atleast_1d(np.asarray(flops, dtype=float))
    params = {name: np.array([value]) for name, value in fit.params.items()}
    n = _optimal_n(params, compute / flops_per_nd)[0]
    with np.errstate(all="ignore"):
        d = compute / flops_per_nd / n
        loss = fit.law.predict(fit.params, {fit.law.n: n, fit.law.d: d})
    table = pd.DataFrame({"flops": compute, "n": n, "d": d, "loss": loss})
    if len(fit.draws):
        # A draw whose exponent is at its bound has an end at 0 or infinity; so few that no end of an interval is one.
        with np.errstate(all="ignore"):
            spread = _optimal_n({name: fit.draws[name].to_numpy() for name in fit.params}, compute / flops_per_nd)
        spread = spread[((spread > 0) & np.isfinite(spread)).all(axis=1)]
        table["n_lower"], table["n_upper"] = percentiles(spread, 0.95)
        table["d_lower"], table["d_upper"] = percentiles(compute / flops_per_nd / spread, 0.95)
    with np.errstate(all="ignore"):
        a = float(np.divide(fit.params["beta"], fit.params["alpha"] + fit.params["beta"]))
    return Allocation(table, a, 1.0 - a)


def no_optimum(fit: Fit) -> str | None:
    """Why a Chinchilla fit tells no best N and D: one of its terms is at a bound or an exponent is not identified."""
    terms = [name for name in ("A", "B", "alpha", "beta") if name in fit.params]
    held = [name for name in terms if name in fit.at_ends]
    loose = [name for name in terms if name in fit.law.exponents and identified.unidentified(fit, name) is not None]
    if held or loose:
        why = f"{_listed(held)} at a bound" if held else f"{_listed(loose)} not identified"
    elif identified.together(fit):
        why = "they hardly move apart"
    else:
        return None
    return f"these runs do not tell how to divide compute between N and D: {why}"


def _listed(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _optimal_n(params: dict[str, Array], nd: Array) -> Array:
    """N of least loss for each product N*D: (draws, computes)."""
    total = params["alpha"] + params["beta"]
    with np.errstate(all="ignore"):  # a law without an exponent or a coefficient has no optimum: NaN, 0 or infinity
        log_g = np.log(params["alpha"] * params["A"] / (params["beta"] * params["B"])) / total
        return np.exp(log_g[:, None] + (params["beta"] / total)[:, None] * np.log(nd))


def optimal_on(fit: Fit, cost: Cost, flops: Array) -> Optimal:
    """N and D of least loss at each compute under measured FLOPs per token, from a fitted Chinchilla law: approach 3.

    The slope of the loss along ln N at fixed compute, -alpha A/N^alpha + beta B/D^beta dln(cost)/dlnN, is halved in to
    its zero. `compute_optimal` is the closed form for a cost of 6 N. Raises UserError for another law.
    """
    if not isinstance(fit.law, Chinchilla):
        raise UserError(f"approach 3: needs a chinchilla fit, found {fit.law.name}")
    point = {name: np.array([value]) for name, value in fit.params.items()}
    drawn = {name: fit.draws[name].to_numpy(dtype=float) for name in fit.params}
    n, draws = np.exp(_least(point, cost, flops)[0]), np.exp(_least(drawn, cost, flops))
    d, d_draws = (flops / np.exp(cost.ln_per_token(np.log(size))) for size in (n, draws))
    return Optimal(n, d, fit.law.predict(fit.params, {fit.law.n: n, fit.law.d: d}), draws, d_draws)


def _least(params: dict[str, Array], cost: Cost, flops: Array) -> Array:
    """ln N of least loss: (draws, computes), by bisection over forty e-folds of N."""
    at = {name: values[:, None] for name, values in params.items()}
    low = np.full((len(at["A"]), len(flops)), -5.0)
    high = np.broadcast_to(np.log(flops), low.shape).copy()
    with np.errstate(divide="ignore", over="ignore"):
        for _ in range(60):
            middle = (low + high) / 2
            ln_d = np.log(flops) - cost.ln_per_token(middle)
            gain = np.log(at["alpha"]) + np.log(at["A"]) - at["alpha"] * middle
            loss = np.log(at["beta"]) + np.log(at["B"]) - at["beta"] * ln_d + np.log(cost.elasticity(middle))
            low, high = np.where(gain > loss, middle, low), np.where(gain > loss, high, middle)
    return np.asarray((low + high) / 2)


def fitted_frontier(fit: Fit, runs: pd.DataFrame, flops: Array, interval: float = 0.95) -> pd.DataFrame | None:
    """The fitted law as a line over compute: flops, predicted, lower, upper; None where the law cannot give one.

    A law in flops alone is that line. For Chinchilla it is the lowest loss over model sizes between the smallest and
    the largest of `runs`, each trained for the tokens its measured FLOPs per token leave; no 6ND, no unseen size.
    """
    if fit.law.columns == ("flops",):
        table = pd.DataFrame({"flops": flops})
        return table.join(fit.predict(table, interval))
    if not isinstance(fit.law, Chinchilla) or not {fit.law.n, fit.law.d, "flops"} <= set(runs.columns):
        return None
    good = runs[finished(runs)].dropna(subset=[fit.law.n, fit.law.d, "flops"]).astype({fit.law.n: float})
    if not len(good):
        return None
    per_token = (good["flops"] / good[fit.law.d]).groupby(good[fit.law.n]).median()
    sizes = np.geomspace(per_token.index.min(), per_token.index.max(), 200)
    cost = np.exp(np.interp(np.log(sizes), np.log(per_token.index), np.log(per_token.to_numpy(dtype=float))))
    tokens = flops[:, None] / cost
    grid = {fit.law.n: np.broadcast_to(sizes, tokens.shape).ravel(), fit.law.d: tokens.ravel()}
    best = fit.law.predict(fit.params, grid).reshape(tokens.shape).argmin(axis=1)
    rows = np.arange(len(flops))
    chosen = pd.DataFrame({"flops": flops, fit.law.n: sizes[best], fit.law.d: tokens[rows, best]})
    return chosen.join(fit.predict(chosen, interval))
