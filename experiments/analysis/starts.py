"""Starting points by variable projection: a grid over the parameters that are not linear, the others solved for."""

from collections.abc import Mapping
from itertools import product

import numpy as np

from experiments.analysis.laws import Array, Law

NONE = -600.0  # ln of a coefficient that is as good as absent
LEAST_SHARE = 0.02  # of the loss: what a coefficient that came out negative is lifted to
APART = 0.5  # standard deviations of the trials by which kept starts differ somewhere


def trials(law: Law, x: Mapping[str, Array], ln_y: Array) -> Array:
    """The completed grid, (trials, parameters), inside the law's box."""
    grids = law.grids(x, ln_y)
    points = np.array(list(product(*grids.values())))
    trial = {symbol: points[:, i : i + 1] for i, symbol in enumerate(grids)}
    whole = law.complete(trial, x, ln_y)
    theta = np.concatenate([whole[symbol] for symbol in law.parameters], axis=1)
    return np.clip(theta, *law.bounds(x, ln_y))


def solve_linear(law: Law, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
    """The coefficients that minimise the relative error for each trial: what `Law.complete` does unless overridden."""
    import torch

    linear = [q.symbol for q in law.quantities if q.of_loss]
    inputs = {name: torch.as_tensor(values) for name, values in x.items()}
    fixed = {symbol: torch.as_tensor(values) for symbol, values in trial.items()}
    absent = {symbol: torch.full((1, 1), NONE, dtype=torch.float64) for symbol in linear}
    shape = (len(next(iter(trial.values()))), len(ln_y))
    basis = [
        law.log_loss(fixed | absent | {symbol: torch.zeros((1, 1), dtype=torch.float64)}, inputs).expand(shape).numpy()
        for symbol in linear
    ]
    solved = positive_least_squares(np.stack(basis, axis=-1), np.broadcast_to(ln_y, shape))
    return trial | {symbol: solved[:, k : k + 1] for k, symbol in enumerate(linear)}


def positive_least_squares(log_basis: Array, log_target: Array) -> Array:
    """ln of the coefficients (trials, terms) whose sum is nearest `log_target` (trials, points), relatively.

    `log_basis`: (trials, points, terms). Negative coefficients are lifted to a small share of the target.
    """
    relative = log_basis - log_target[..., None]
    scale = relative.max(axis=1)
    basis = np.exp(relative - scale[:, None])
    linear = least_squares(basis, np.ones_like(log_target))
    return np.log(np.maximum(linear, LEAST_SHARE / np.maximum(basis.mean(axis=1), 1e-300))) - scale


def least_squares(basis: Array, target: Array) -> Array:
    """Coefficients (trials, terms) of `basis` (trials, points, terms) nearest `target` (trials, points)."""
    transposed = basis.transpose(0, 2, 1)
    gram = transposed @ basis
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    solved: Array = np.linalg.solve(gram + ridge, transposed @ target[..., None])[..., 0]
    return solved


def spread_out(theta: Array, error: Array, keep: int) -> Array:
    """The best trials that lie apart, so that agreement between starts means something: (at most keep, parameters)."""
    scale = theta.std(axis=0) + 1e-12
    kept: list[Array] = []
    for candidate in theta[np.argsort(error, kind="stable")]:
        if all(np.abs((candidate - other) / scale).max() > APART for other in kept):
            kept.append(candidate)
        if len(kept) == keep:
            break
    return np.array(kept)
