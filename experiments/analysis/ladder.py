"""The ladder of one variant: its best setting at each level of compute, loss by seed, and what was left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column, excluded, finished, row_names, varied_factors
from experiments.analysis.student import Array
from nanogpt.config import UserError, did_you_mean

SAME = 0.01  # relative difference up to which two amounts of compute are one level


@dataclass(frozen=True, eq=False)
class Ladder:
    """`x`: the levels, rising. `losses`: (levels, seeds). `settings`: the setting chosen at each level, in words;
    `tried`: how many there were to choose from, over all levels."""

    variant: Any
    seeds: tuple[int, ...]
    x: Array
    losses: Array
    settings: tuple[str, ...]
    notes: tuple[str, ...]
    tried: int = 0

    def level_of(self, x: float) -> int | None:
        """The index of the level that `x` belongs to."""
        near = np.flatnonzero(np.abs(np.log(self.x / x)) <= SAME)
        return int(near[0]) if len(near) else None


def make_ladder(runs: pd.DataFrame, factor: str, variant: Any, x: str, y: str) -> Ladder:
    """The best setting of `variant` at each level of `x`, by the mean over its seeds.

    A setting counts where every seed finished; a level where no cheaper one beats it by more than noise. Raises
    UserError when nothing is left, and for a finished run whose `x` or `y` is no finite number above 0.
    """
    x, y = column(runs, x, "compare"), column(runs, y, "compare")
    settings = varied_factors(runs, factor, x)
    results = runs[finished(runs)]
    mine = runs[[bool(value == variant) for value in runs[factor]]]  # a cell may hold a list, which pandas spreads
    done = mine[finished(mine)]
    if not len(done):
        raise UserError(f"compare: no finished run has {factor} = {variant!r}{_meant(variant, results[factor])}")
    for name in (x, y):
        arguments.numbers(done[name], row_names(done).to_list(), "compare", advice=arguments.LEAVE_OUT)
    numbers = arguments.seeds_of(done, "compare")
    seeds = tuple(sorted(numbers.unique().tolist()))
    cells, incomplete = _cells(done, numbers, seeds, settings, x, y)
    if not cells:
        raise UserError(f"compare: at no setting of {factor} = {variant} did every one of {len(seeds)} seeds finish")
    best, beaten = _climb(_best_per_level(cells))
    notes = [f"{variant}: {lost} have no result to compare"] if (lost := _without_result(mine)) else []
    notes += [f"{variant}: {incomplete} settings lack a seed and were left out"] if incomplete else []
    notes += [f"{variant}: {beaten} levels do no better than a cheaper one and were left out"] if beaten else []
    return Ladder(variant, seeds, np.array([cell.x for cell in best]), np.stack([cell.losses for cell in best]),
                  tuple(cell.setting for cell in best), tuple(notes), len(cells))  # fmt: skip


def _meant(variant: Any, having: "pd.Series[Any]") -> str:
    """The nearest variant there is; all of them, as Python writes them, where they are not text: 2 is not '2'."""
    values = having.tolist()
    if isinstance(variant, str) and all(isinstance(value, str) for value in values):
        return did_you_mean(variant, sorted(set(values)))
    known = sorted({repr(value) for value in values})
    return f"; allowed: {', '.join(known)}" if known else ""


def _without_result(mine: pd.DataFrame) -> str:
    """`2 diverged, 1 failed`: what became of the runs of a variant that left no result; they may be its worst."""
    left = mine[~finished(mine)]
    states = left["status"] if "status" in left.columns else pd.Series("", index=left.index)
    states = states.mask(excluded(left), "excluded")
    return ", ".join(f"{count} {state}" for state, count in states.value_counts().sort_index().items())


@dataclass(frozen=True, eq=False)
class _Cell:
    x: float
    losses: Array
    setting: str

    @property
    def mean(self) -> float:
        return float(self.losses.mean())

    @property
    def error(self) -> float:
        """Of the mean, over seeds."""
        return float(self.losses.std(ddof=1)) / len(self.losses) ** 0.5 if len(self.losses) > 1 else 0.0


def _cells(
    done: pd.DataFrame, numbers: "pd.Series[int]", seeds: Sequence[int], settings: list[str], x: str, y: str
) -> tuple[list[_Cell], int]:
    """The settings that every seed finished, and how many others there are."""
    cells, incomplete = [], 0
    for rows in _alike(done, numbers, settings, x):
        by_seed = dict(zip(numbers[rows.index], rows[y].astype(float), strict=True))
        if len(by_seed) < len(rows):
            raise UserError(
                f"compare: two runs have the same seed and {', '.join(settings) or x}: something else varies too; "
                "name it in `where`"
            )
        if set(by_seed) != set(seeds):
            incomplete += 1
            continue
        words = ", ".join(f"{name.rpartition('.')[2]}={rows[name].iloc[0]}" for name in settings)
        cells.append(_Cell(float(rows[x].mean()), np.array([by_seed[seed] for seed in seeds]), words))
    return cells, incomplete


def _alike(done: pd.DataFrame, numbers: "pd.Series[int]", settings: list[str], x: str) -> Iterator[pd.DataFrame]:
    """The runs of one setting together, level by level where the settings alone do not tell them apart."""
    keys = done[settings].map(repr).agg(", ".join, axis=1) if settings else pd.Series("", index=done.index)
    for _, rows in done.groupby(keys, sort=False):
        if numbers[rows.index].is_unique:
            yield rows
        else:
            yield from (part for _, part in rows.groupby(rows[x].astype(float), sort=False))


def _best_per_level(cells: list[_Cell]) -> list[_Cell]:
    """One cell per level of x: the lowest mean."""
    best: list[_Cell] = []
    start = 0.0
    for cell in sorted(cells, key=lambda cell: cell.x):
        if best and cell.x <= start * (1 + SAME):
            best[-1] = min(best[-1], cell, key=lambda each: each.mean)
        else:
            best.append(cell)
            start = cell.x
    return best


def _climb(levels: list[_Cell]) -> tuple[list[_Cell], int]:
    """The levels that are worth their cost: none stays that a cheaper one beats by more than two standard errors."""
    kept: list[_Cell] = []
    for cell in levels:
        lowest = min(kept, key=lambda each: each.mean, default=None)
        if lowest is None or cell.mean < lowest.mean + 2 * float(np.hypot(cell.error, lowest.error)):
            kept.append(cell)
    return kept, len(levels) - len(kept)
