"""Variants in order of what they make of their compute: each against a baseline, and each against the next in line.

Two variants are apart only where the interval of their own comparison says so; everything else is undecided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.analysis.columns import column, finished, varied_factors
from experiments.analysis.compare import Comparison, compare
from experiments.analysis.parabola import Refusal
from experiments.analysis.student import Interval
from nanogpt.config import UserError, did_you_mean

HEADS = ("rank", "variant", "multiplier", "loss at equal compute", "against the baseline", "against the next")


@dataclass(frozen=True, eq=False)
class Ranked:
    """One variant. `against_baseline` is None for the baseline itself, `against_next` for the last.

    `rank` is one more than the number of variants that are better beyond the interval of their own comparison.
    """

    variant: Any
    rank: int
    against_baseline: Comparison | None
    against_next: Comparison | None


@dataclass(frozen=True, eq=False)
class Ranking:
    """The variants, the best first. `x` is the cost and `level` that of the intervals; `spread` the largest relative
    deviation of a run's cost from the mean over its seeds, by variant."""

    factor: str
    baseline: Any
    x: str
    y: str
    level: float
    ranked: tuple[Ranked, ...]
    spread: dict[Any, float]


def rank_variants(
    runs: pd.DataFrame, factor: str, baseline: Any, x: str = "flops", y: str = "val_loss", where: str | None = None
) -> Ranking:
    """Rank the values of `factor` by their multiplier of `x` over `baseline`; where there is none, by the loss at
    equal `x`. UserError as `compare`, and for a factor with a single value."""
    name = column(runs, factor, "compare.factor")
    variants = runs.loc[finished(runs), name].dropna().drop_duplicates().tolist()
    if baseline not in variants:
        raise UserError(f"compare.baseline: no finished run has {factor} = {baseline!r}{_known(baseline, variants)}")
    if len(variants) < 2:
        raise UserError(f"compare: {factor} has one value among the finished runs, so nothing is compared")
    found = {each: compare(runs, name, baseline, each, x, y, where) for each in variants if each != baseline}
    order = sorted(variants, key=lambda each: _merit(found.get(each)), reverse=True)
    duels = {
        (better, worse): _duel(runs, name, worse, better, x, y, where, found)
        for place, better in enumerate(order)
        for worse in order[place + 1 :]
    }
    ranked = []
    for each, after in zip(order, [*order[1:], None], strict=True):
        beaten_by = sum(_is_better(one, two, duel, each) for (one, two), duel in duels.items())
        ranked.append(Ranked(each, 1 + beaten_by, found.get(each), duels.get((each, after))))
    level = next(iter(found.values())).level
    return Ranking(name, baseline, x, y, level, tuple(ranked), _spread(runs, name, column(runs, x, "compare")))


def _is_better(one: Any, two: Any, duel: Comparison, than: Any) -> bool:
    """Whether the other side of a duel between `one` and `two` beats `than`, which is one of them."""
    return (verdict(duel) == "win" and two == than) or (verdict(duel) == "loss" and one == than)


def _known(baseline: Any, variants: Sequence[Any]) -> str:
    return did_you_mean(str(baseline), [str(each) for each in variants])


def _duel(
    runs: pd.DataFrame, factor: str, worse: Any, better: Any, x: str, y: str, where: str | None,
    found: dict[Any, Comparison],
) -> Comparison:  # fmt: skip
    """The better of two neighbours against the worse; one that has been made already is taken as it is."""
    if better in found and found[better].baseline == worse:
        return found[better]
    return compare(runs, factor, worse, better, x, y, where)


def _merit(comparison: Comparison | None) -> tuple[int, float]:
    """What variants are ordered by: the baseline's multiplier is 1. Without one the sign of the gap says on which side
    of the baseline a variant stands, and beyond all that have one."""
    if comparison is None:
        return 0, 1.0
    if isinstance(comparison.multiplier, Interval):
        return 0, comparison.multiplier.value
    gap = comparison.gap.value if isinstance(comparison.gap, Interval) else 0.0
    return (-1 if gap > 0 else 1, -gap)


def _spread(runs: pd.DataFrame, factor: str, x: str) -> dict[Any, float]:
    """The largest relative deviation of a cost from that of the runs that differ by seed alone, by variant."""
    done = runs[finished(runs)]
    same = varied_factors(done, factor)
    keys = done[[factor, *same]].map(repr).agg(", ".join, axis=1)
    mean = done.groupby(keys)[x].transform("mean")
    apart = (done[x] / mean - 1).abs()
    return {variant: float(apart[done[factor] == variant].max()) for variant in done[factor].drop_duplicates()}


def verdict(comparison: Comparison | None) -> str:
    """Win or loss where the interval decides, else `undecided`; empty without a comparison."""
    if comparison is None:
        return ""
    return comparison.outcome if comparison.outcome in ("win", "loss") else "undecided"


def ranking_table(ranking: Ranking) -> pd.DataFrame:
    """The ranking as text, a row per variant."""
    rows = []
    for place, one in enumerate(ranking.ranked, start=1):
        versus = one.against_baseline
        rows.append((
            str(one.rank), str(one.variant),
            _cell(versus.multiplier, "{:.3g}") if versus is not None else "1 (baseline)",
            _cell(versus.gap, "{:+.4f}") if versus is not None else "",
            verdict(versus), _next(one, ranking.ranked[place] if place < len(ranking.ranked) else None),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(HEADS))


def _cell(number: Interval | Refusal, form: str) -> str:
    return number.text(form) if isinstance(number, Interval) else "none"


def _next(one: Ranked, after: Ranked | None) -> str:
    if after is None or one.against_next is None:
        return ""
    word = {"win": "better than", "loss": "worse than"}.get(verdict(one.against_next), "undecided against")
    return f"{word} {after.variant}"


def ranking_notes(ranking: Ranking) -> tuple[str, ...]:
    """How the table is to be read, and what each comparison wants said beside it."""
    along = ranking.x.rpartition(".")[2]
    percent = f"{100 * ranking.level:.0f} %"
    notes = [
        f"Multiplier of {along}: how much more of it {ranking.baseline} needs for the same loss, with {percent} "
        f"intervals over seeds. A verdict follows the interval, never the number. The rank is one more than the "
        "number of variants that are better by the interval of their own comparison."
    ]
    wide = {variant: apart for variant, apart in ranking.spread.items() if apart > 1e-6}
    if wide:
        parts = ", ".join(f"{variant} {apart:.1%}" for variant, apart in wide.items())
        notes.append(
            f"Runs that differ by seed alone spent up to this much more or less {along} than their mean: {parts}."
        )
    for one in ranking.ranked:
        told = one.against_baseline.notes if one.against_baseline is not None else ()
        if one.against_baseline is not None and isinstance(one.against_baseline.multiplier, Refusal):
            told = (f"no multiplier: {one.against_baseline.multiplier.reason}", *told)
        notes += [note if note.startswith(f"{one.variant}:") else f"{one.variant}: {note}" for note in told]
    return tuple(dict.fromkeys(notes))


def ranking_text(ranking: Ranking) -> str:
    """The ranking for a terminal."""
    along = ranking.x.rpartition(".")[2]
    lines = [f"ranking of {ranking.factor} by multiplier of {along} over {ranking.baseline}:"]
    for row in ranking_table(ranking).to_dict(orient="records"):
        gap = f"; loss {row['loss at equal compute']}" if row["loss at equal compute"] else ""
        outcome = f": {row['against the baseline']}" if row["against the baseline"] else ""
        after = f"; {row['against the next']}" if row["against the next"] else ""
        lines.append(f"  {row['rank']:>3} {row['variant']:<18} {row['multiplier']}{gap}{outcome}{after}")
    return "\n".join(lines + [f"  {note}" for note in ranking_notes(ranking)])
