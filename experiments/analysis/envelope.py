"""Approach 1: which size reaches the lowest loss at each compute, read from curves of loss over compute.

Hoffmann et al. 2022 (arXiv 2203.15556, section 3.1) take the lower envelope over training curves at 1,500 computes and
fit ln N and ln D of the winners against ln C. Where the winner has no smaller or no larger rival at that compute, the
true best size may lie beyond the ones trained: such computes are left out, and their share is reported.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis.laws import Array
from experiments.analysis.observations import Observations
from experiments.analysis.powerline import PowerLine, fit_line
from experiments.analysis.slices import Noise, losses_at, noise_draws, noise_of
from nanogpt.config import UserError

COMPUTES = 1500
COMPUTES_PER_DRAW = 300  # a draw only has to place the line, not to draw it
LEAST_WINNERS = 3


@dataclass(frozen=True, eq=False)
class Envelope:
    """`table`: a row per compute: flops, n, d, loss, inside (smaller and larger sizes were there and did worse).
    `n_line`, `d_line`: ln N and ln D of the inside winners against ln C. `winners`: how many sizes win inside."""

    observations: Observations
    table: pd.DataFrame
    n_line: PowerLine
    d_line: PowerLine
    winners: int
    noise: Noise

    @property
    def refused(self) -> float:
        """Share of the computes whose winner is the smallest or the largest size there is."""
        return float(1.0 - self.table["inside"].mean())


def envelope(
    observations: Observations, *, noise: float | None = None, draws: int = 400, seed: int = 0, computes: int = COMPUTES
) -> Envelope:
    """The envelope of the paths of `observations` at `computes` log-spaced FLOPs, and the lines through its winners.

    Draws disturb every run by `noise` (sd of the loss in nats; default: as `slices.noise_of` finds it), all points of
    one run together. UserError where fewer than three sizes win inside the range of sizes.
    """
    table = observations.table
    curves = int((table.groupby("path").size() > 1).sum())
    if curves < LEAST_WINNERS:
        raise UserError(f"approach 1: needs curves of loss over compute: {LEAST_WINNERS} sizes with two token counts "
                        f"each, or training curves; found {curves}")  # fmt: skip
    budgets = np.geomspace(table["flops"].min(), table["flops"].max(), computes)
    found = _winners(observations, budgets, table["loss"].to_numpy(dtype=float)[None])
    n, loss, inside = (values[0] for values in found)
    winners = len(np.unique(n[inside]))
    if winners < LEAST_WINNERS:
        raise UserError(
            f"approach 1: inside the range of sizes only {winners} of {len(observations.sizes)} sizes are best at some "
            f"compute, and a line needs {LEAST_WINNERS}; at {1 - inside.mean():.0%} of the computes the best size has "
            "no smaller or no larger rival"
        )
    kept = noise_of(observations, noise)
    spread = _draws(observations, kept, draws, seed)
    rows = pd.DataFrame({"flops": budgets, "n": n, "d": observations.tokens(n, budgets), "loss": loss,
                         "inside": inside}).dropna(subset="n")  # fmt: skip
    good = rows[rows["inside"]]
    coarse, n_draws, d_draws = spread
    n_line = fit_line(good["flops"], good["n"], draws=(coarse, n_draws), independent=winners)
    d_line = fit_line(good["flops"], good["d"], draws=(coarse, d_draws), independent=winners)
    return Envelope(observations, rows.reset_index(drop=True), n_line, d_line, winners, kept)


def _draws(observations: Observations, noise: Noise, draws: int, seed: int) -> tuple[Array, Array, Array]:
    """Coarse computes, and N and D of the winners in each disturbed table, NaN at an edge: (draws, computes)."""
    table = observations.table
    budgets = np.geomspace(table["flops"].min(), table["flops"].max(), COMPUTES_PER_DRAW)
    losses = noise_draws(table, noise, draws, seed)
    if not len(losses):
        nothing = np.zeros((0, len(budgets)))
        return budgets, nothing, nothing
    n, _, inside = _winners(observations, budgets, losses)
    n = np.where(inside, n, np.nan)
    return budgets, n, observations.tokens(n, budgets)


def _winners(observations: Observations, budgets: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Size, loss and whether it is inside, of the lowest path at each compute: each (draws, computes)."""
    sizes, there = losses_at(observations, budgets, losses)
    there = np.where(np.isnan(there), np.inf, there)
    best = there.argmin(axis=0)
    known = np.isfinite(there)
    any_known = known.any(axis=0)
    smallest = np.where(known, sizes[:, None, None], np.inf).min(axis=0)
    largest = np.where(known, sizes[:, None, None], -np.inf).max(axis=0)
    n = np.where(any_known, sizes[best], np.nan)
    loss = np.take_along_axis(there, best[None], axis=0)[0]
    return n, loss, any_known & (n > smallest) & (n < largest)
