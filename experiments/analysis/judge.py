"""The verdict on each of a study's claims: held, failed or undecided, by an interval, with the evidence in words.

One function per form of statement. A point alone never decides: where there is no interval (one seed, too few runs)
the verdict is undecided and the evidence says why. The held-out error is no estimate but what was measured.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis.cbs import noise_scales, trade_off
from experiments.analysis.columns import column, diverged, excluded, finished, varied_factors
from experiments.analysis.compare import Comparison, compare
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import Holdout
from experiments.analysis.hyper import hyper_law
from experiments.analysis.optimum import Estimate, SizeOptimum, find_optima
from experiments.analysis.parabola import Refusal
from experiments.analysis.rollout import Rollout
from experiments.analysis.statements import (
    Beats,
    Bound,
    CoversEntropy,
    CriticalBatch,
    Drift,
    HeldOutError,
    Losses,
    Matches,
    NoiseScale,
    OptimumExponent,
    Parameter,
    Statement,
    Word,
    compared_factor,
)
from experiments.analysis.student import LEVEL, Interval, seed_spread
from experiments.analysis.where import select
from nanogpt.config import UserError, did_you_mean

OPPOSITE: dict[Word, Word] = {"held": "failed", "failed": "held", "undecided": "undecided"}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What claims are judged by: the table of runs, their curves, the study's fit, its held-out prediction, its
    expanding cuts, the entropy of its data."""

    runs: pd.DataFrame
    curves: pd.DataFrame | None = None
    fit: Fit | None = None
    holdout: Holdout | None = None
    entropy: float | None = None
    y: str = "val_loss"
    rollout: Rollout | None = None

    def rows(self, where: str | None) -> pd.DataFrame:
        """The runs that a claim speaks of."""
        return self.runs[select(self.runs, where, "claims: where")] if where else self.runs

    def curves_of(self, where: str | None) -> pd.DataFrame:
        """The curves of the runs that have a result and that a claim speaks of. UserError where there are none."""
        rows = self.rows(where)
        known = set(rows.loc[finished(rows), "id"]) if "id" in rows.columns else set()
        curves = self.curves[self.curves["id"].isin(known)] if self.curves is not None else None
        if curves is None or not len(curves):
            raise UserError("no finished run left a curve")
        return curves


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and what it rests on."""

    text: str
    verdict: Word
    evidence: str


def judge_all(statements: Sequence[Statement], evidence: Evidence) -> tuple[Judged, ...]:
    """Every claim judged. What cannot be worked out is undecided, with the reason; nothing is raised."""
    return tuple(judge_claim(statement, evidence) for statement in statements)


def judge_claim(statement: Statement, evidence: Evidence) -> Judged:
    """One claim judged, by the function of its form."""
    try:
        verdict, words = judge(statement, evidence)
        missing = _without_result(evidence.rows(statement.where))
    except UserError as error:
        return Judged(statement.text, "undecided", str(error))
    return Judged(statement.text, verdict, words + missing)


def judged_text(judged: Sequence[Judged]) -> str:
    """The claims as a terminal shows them; a failed one in capitals."""
    marks = {"held": "held", "failed": "FAILED", "undecided": "undecided"}
    lines = [f"  {marks[each.verdict]:<10} {each.text}\n             {each.evidence}" for each in judged]
    return "\n".join(["claims:", *lines]) if lines else ""


def _without_result(rows: pd.DataFrame) -> str:
    """A verdict on half a study must say that it is one."""
    if "status" not in rows.columns:
        return ""
    done = finished(rows) | diverged(rows) | excluded(rows) | rows["status"].eq("pruned")
    return f" ({int((~done).sum())} of {len(rows)} runs have no result)" if not done.all() else ""


@functools.singledispatch
def judge(statement: Statement, evidence: Evidence) -> tuple[Word, str]:
    """The verdict on a statement and its evidence; UserError where the runs do not hold the answer."""
    raise AssertionError(f"no verdict for {type(statement).__name__}")


@judge.register
def _held_out(statement: HeldOutError, evidence: Evidence) -> tuple[Word, str]:
    held = evidence.holdout
    if held is None or statement.by == "rollout":
        return _rolled_out(statement, evidence)
    error = held.max_error if statement.which == "largest" else held.mean_error
    words = (
        f"{statement.which} error {error:.2%} of the holdout: {len(held.table)} runs, up to {held.reach:.3g} times the "
        f"{held.by} of those fitted"
    )
    beside = f" (rollout over expanding cuts: mean {evidence.rollout.error:.2%})" if evidence.rollout else ""
    return statement.bound.judge(error, error), words + beside


def _rolled_out(statement: HeldOutError, evidence: Evidence) -> tuple[Word, str]:
    """By the expanding cuts that every fit carries: asked for, or because the study holds no runs out itself."""
    rolled = evidence.rollout
    if rolled is None or statement.by == "holdout":
        raise UserError("there is no held-out prediction yet")
    error = rolled.max_error if statement.which == "largest" else rolled.error
    words = f"{statement.which} error {error:.2%} of the rollout: {rolled.sentence().removesuffix('.')}"
    return statement.bound.judge(error, error), words


@judge.register
def _drift(statement: Drift, evidence: Evidence) -> tuple[Word, str]:
    found = find_optima(evidence.rows(statement.where), statement.of, statement.per, y=evidence.y)
    (panel,) = found.panels
    others = [size for size in panel.sizes if size.size != panel.base]
    if not others:
        raise UserError(f"only {statement.per} {panel.base} was tried")
    verdicts = [_drift_verdict(size, statement.bound) for size in others]
    over = statement.bound.high == float("inf")
    words = "; ".join(_drift_words(size) for size in others)
    seeds = f"95 % intervals over {len(panel.seeds)} seeds" if len(panel.seeds) > 1 else "one seed gives no interval"
    return _all(verdicts, any_is_enough=over), f"from {statement.per} {panel.base}, in octaves: {words} ({seeds})"


def _drift_verdict(size: SizeOptimum, bound: Bound) -> Word:
    """Over a limit is on either side of it; every other bound is one on the signed drift."""
    if isinstance(size.drift, Refusal) or not size.drift.has_interval:
        return "undecided"
    if bound.high < float("inf"):
        return bound.judge(size.drift.lower, size.drift.upper)
    return OPPOSITE[Bound(bound.text, -bound.low, bound.low).judge(size.drift.lower, size.drift.upper)]


def _drift_words(size: SizeOptimum) -> str:
    if isinstance(size.drift, Refusal):
        return f"{size.size}: not known, {size.drift.reason}"
    drift: Estimate = size.drift
    interval = f" [{drift.lower:+.2f}, {drift.upper:+.2f}]" if drift.has_interval else ""
    return f"{size.size}: {drift.value:+.2f}{interval}"


def _all(verdicts: Sequence[Word], any_is_enough: bool = False) -> Word:
    """What holds for every one of them, or for one of them."""
    end: Word = "held" if any_is_enough else "failed"
    if end in verdicts:
        return end
    return OPPOSITE[end] if set(verdicts) == {OPPOSITE[end]} else "undecided"


@judge.register
def _exponent(statement: OptimumExponent, evidence: Evidence) -> tuple[Word, str]:
    law = hyper_law(evidence.rows(statement.where), statement.of, [statement.per], y=evidence.y)
    (exponent,) = law.exponents.values()
    if isinstance(exponent, Refusal):
        raise UserError(exponent.reason)
    return statement.bound.judge(exponent.lower, exponent.upper), law.sentence()


def _compared(statement: Beats | Matches, evidence: Evidence) -> Comparison:
    rows = evidence.rows(statement.where)
    values = {name: rows[name].dropna().unique().tolist() for name in _factors(rows)}
    factor = compared_factor(statement, values, "claims")
    by_name = {str(value): value for value in values[factor]}
    baseline, candidate = by_name[statement.baseline], by_name[statement.candidate]
    return compare(rows, factor, baseline, candidate, statement.x, evidence.y)


def _factors(rows: pd.DataFrame) -> list[str]:
    return varied_factors(rows)


@judge.register
def _beats(statement: Beats, evidence: Evidence) -> tuple[Word, str]:
    found = _compared(statement, evidence)
    words = _with_notes(found)
    if isinstance(found.multiplier, Interval):
        lower, upper = found.multiplier.lower, found.multiplier.upper
        return ("held" if lower > statement.by else "failed" if upper < statement.by else "undecided"), words
    if statement.by != 1.0 or found.outcome is None:
        return "undecided", words
    verdicts: dict[str, Word] = {"win": "held", "loss": "failed", "tie": "undecided"}
    return verdicts[found.outcome], words


@judge.register
def _matches(statement: Matches, evidence: Evidence) -> tuple[Word, str]:
    found = _compared(statement, evidence)
    if isinstance(found.multiplier, Refusal):
        return "undecided", _with_notes(found)
    near = Bound("", 1 / (1 + statement.within), 1 + statement.within)
    return near.judge(found.multiplier.lower, found.multiplier.upper), _with_notes(found)


def _with_notes(found: Comparison) -> str:
    return "; ".join([found.sentence(), *found.notes])


@judge.register
def _noise(statement: NoiseScale, evidence: Evidence) -> tuple[Word, str]:
    found = noise_scales(evidence.curves_of(statement.where))
    if found is None:
        raise UserError("no run measured it; set runtime.noise_scale_interval")
    ends = found.runs[["lower", "upper"]].to_numpy(dtype=float)
    return _all([statement.bound.judge(low, high) for low, high in ends]), found.sentence()


@judge.register
def _critical(statement: CriticalBatch, evidence: Evidence) -> tuple[Word, str]:
    found = trade_off(evidence.curves_of(statement.where), statement.target)
    words = "; ".join([found.sentence(), *found.notes])
    if isinstance(found.critical_batch, Refusal):
        return "undecided", words
    return statement.bound.judge(found.critical_batch.lower, found.critical_batch.upper), words


@judge.register
def _losses(statement: Losses, evidence: Evidence) -> tuple[Word, str]:
    rows = evidence.rows(statement.where)
    rows = rows[finished(rows)]
    name = column(rows, statement.column, "claims")
    rows = rows[pd.to_numeric(rows[name], errors="coerce").notna()]
    if not len(rows):
        raise UserError(f"no finished run has {name}")
    groups, lacking = _by_setting(rows, name), ""
    if statement.which == "lowest":
        # A mean over the seeds that happened to finish would win by their luck.
        whole = [values for values in groups if len(values) == max(map(len, groups))]
        lacking = f"; {len(groups) - len(whole)} settings lack a seed and do not count" * (len(whole) < len(groups))
        groups = [min(whole, key=lambda values: float(np.mean(values)))]
    intervals = [_mean_interval(values) for values in groups]
    verdicts = [statement.bound.judge(each.lower, each.upper) for each in intervals]
    means = [each.value for each in intervals]
    if len(intervals) == 1:
        seeds = len(groups[0])
        words = f"{name} {intervals[0].text('{:.4f}')} over {seeds} seeds" if seeds > 1 else f"{name} {means[0]:.4f}"
    else:
        words = f"mean {name} of {len(groups)} settings from {min(means):.4f} to {max(means):.4f}"
    alone = (
        "; one seed gives no interval" if min(map(len, groups)) < 2 else f" ({100 * LEVEL:.0f} % intervals over seeds)"
    )
    return _all(verdicts), words + alone + lacking


def _by_setting(rows: pd.DataFrame, name: str) -> "list[np.ndarray[tuple[int], np.dtype[np.float64]]]":
    """The values of a column, setting by setting; a setting may hold whole sections, or lack a key that others have."""
    values, settings = pd.to_numeric(rows[name]), _factors(rows)
    keys = rows[settings].map(repr).agg(", ".join, axis=1) if settings else pd.Series("", index=rows.index)
    return [part.to_numpy(dtype=float) for _, part in values.groupby(keys)]


def _mean_interval(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Interval:
    """Of the mean over seeds; with one seed its ends are not known."""
    spread, mean = seed_spread([values - values.mean()]), float(values.mean())
    return Interval(mean, float("nan"), float("nan")) if spread is None else spread.interval(mean)


def _fitted(statement: CoversEntropy | Parameter, evidence: Evidence) -> tuple[Fit, Interval]:
    """The study's fit and the interval of the parameter that a claim names."""
    if evidence.fit is None:
        raise UserError("no law could be fitted")
    if statement.symbol not in evidence.fit.params:
        hint = did_you_mean(statement.symbol, evidence.fit.params)
        raise UserError(f"{evidence.fit.law.name} has no parameter {statement.symbol!r}{hint}")
    lower, upper = evidence.fit.conf_int(LEVEL).loc[statement.symbol].to_numpy(dtype=float)
    return evidence.fit, Interval(float(evidence.fit.params[statement.symbol]), float(lower), float(upper))


def _entropy(evidence: Evidence) -> float:
    if evidence.entropy is None:
        raise UserError("the entropy of these data is not known")
    return evidence.entropy


@judge.register
def _covers(statement: CoversEntropy, evidence: Evidence) -> tuple[Word, str]:
    fitted, interval = _fitted(statement, evidence)
    entropy = _entropy(evidence)
    words = f"{statement.symbol} = {interval.text('{:.4f}')} ({100 * LEVEL:.0f} %), the entropy is {entropy:.4f}"
    if not np.isfinite(interval.lower):
        return "undecided", f"{words}; without a bootstrap there is no interval"
    if interval.lower <= 1e-3 * float(fitted.points[fitted.y].min()) < entropy:
        return "undecided", f"{words}; an interval that reaches zero covers anything"
    return ("held" if interval.lower <= entropy <= interval.upper else "failed"), words


@judge.register
def _parameter(statement: Parameter, evidence: Evidence) -> tuple[Word, str]:
    fitted, interval = _fitted(statement, evidence)
    unit = _entropy(evidence) if statement.bound.of_entropy else 1.0
    words = f"{statement.symbol} = {interval.text('{:.4g}')} ({100 * LEVEL:.0f} % interval, {len(fitted.points)} runs)"
    words += f", the entropy is {unit:.4f}" if statement.bound.of_entropy else ""
    return statement.bound.judge(interval.lower, interval.upper, unit), words
