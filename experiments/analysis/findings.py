"""From a table of runs to what may be said about it: the fit, the held-out prediction, claims that hold or fail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import intervals
from experiments.analysis.approach_words import approach_claims, approach_text
from experiments.analysis.approaches import Approaches, compare_approaches
from experiments.analysis.bounds import FLOOR_IS_ZERO
from experiments.analysis.cbs import noise_scales
from experiments.analysis.claims import Claim
from experiments.analysis.columns import finished, varied_factors
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import Holdout, holdout
from experiments.analysis.judge import Evidence, Judged, judge_all, judged_text
from experiments.analysis.laws import Chinchilla, Law, make_law
from experiments.analysis.optimum import Optima, find_optima
from experiments.analysis.ranking import Ranking, rank_variants, ranking_text
from experiments.analysis.rollout import Rollout, rollout
from experiments.analysis.searched import Searched, search_sentences
from experiments.analysis.spec import ApproachesSpec, CompareSpec, FitSpec, OptimumSpec
from experiments.analysis.statements import Statement
from experiments.analysis.transfer import transfer_claims, transfer_text
from nanogpt.config import UserError


@dataclass(frozen=True, eq=False)
class Analysis:
    """A study's fit on all its runs, its held-out prediction, the true floor of its data where known, the optima of
    its sweep, and the claims.

    `problems` says in words what could not be done (too few finished runs, say); `best` is the row of lowest loss.
    """

    spec: FitSpec | None
    fit: Fit | None
    holdout: Holdout | None
    floor: float | None
    best: Mapping[str, Any] | None
    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    optima: Optima | None = None
    rollout: Rollout | None = None
    approaches: Approaches | None = None
    judged: tuple[Judged, ...] = ()
    ranking: Ranking | None = None


def with_claims(
    analysis: Analysis, statements: Sequence[Statement], runs: pd.DataFrame, curves: pd.DataFrame | None
) -> Analysis:
    """The analysis with the verdicts on the study's own claims, and a sentence on the noise scale where it was
    measured."""
    y = analysis.spec.y if analysis.spec is not None else "val_loss"
    evidence = Evidence(runs, curves, analysis.fit, analysis.holdout, analysis.floor, y, analysis.rollout)
    measured = noise_scales(curves) if curves is not None else None
    claims = (*analysis.claims, *([Claim(f"The {measured.sentence()}.")] if measured is not None else []))
    return replace(analysis, claims=claims, judged=judge_all(statements, evidence))


def analyse_table(
    spec: FitSpec | None,
    runs: pd.DataFrame,
    y: str = "val_loss",
    optimum: OptimumSpec | None = None,
    searched: Searched | None = None,
    approaches: ApproachesSpec | None = None,
    curves: pd.DataFrame | None = None,
    compare: CompareSpec | None = None,
) -> Analysis:
    """Fit, hold out and state; a table too small for its law gives an Analysis whose `problems` say so."""
    y = spec.y if spec is not None else y
    best = _best(runs, y)
    result: Fit | None = None
    held: Holdout | None = None
    problems: list[str] = []
    if spec is not None:
        try:
            result = fit(make_law(spec.law, **spec.chosen_columns()), runs, y=y, **_options(spec))
            held = _hold_out(spec, runs, y)
        except UserError as error:
            problems.append(str(error))
    rolled = _roll_out(spec, result, runs, y, problems)
    found = _approaches(approaches, spec, result, runs, curves, problems)
    optima = _optima(optimum, runs, problems)
    ranking = _ranking(compare, runs, problems)
    floor = _true_floor(runs, y)
    about_optima = transfer_claims(optima, optimum) if optima is not None and optimum is not None else ()
    about_fit = _claims(spec, result, held, floor, best, runs, y, searched, rolled)
    claims = (*about_optima, *(approach_claims(found) if found is not None else ()), *about_fit)
    return Analysis(spec, result, held, floor, best, claims, tuple(problems), optima, rolled, found, (), ranking)


def _ranking(spec: CompareSpec | None, runs: pd.DataFrame, problems: list[str]) -> Ranking | None:
    if spec is None or not finished(runs).any():
        return None
    try:
        return rank_variants(runs, **spec.model_dump())
    except UserError as error:
        problems.append(str(error))
        return None


def _optima(spec: OptimumSpec | None, runs: pd.DataFrame, problems: list[str]) -> Optima | None:
    if spec is None or not finished(runs).any():
        return None
    options = spec.model_dump(include={"per", "panel", "y", "base", "where", "window", "bootstrap", "seed"})
    try:
        return find_optima(runs, spec.of, **options)
    except UserError as error:
        problems.append(str(error))
        return None


def _roll_out(
    spec: FitSpec | None, result: Fit | None, runs: pd.DataFrame, y: str, problems: list[str]
) -> Rollout | None:
    """The held-out error that every fit carries; where no cut can be made, that is said."""
    if spec is None or result is None:
        return None
    try:
        return rollout(result.law, runs, y=y, **spec.rollout.model_dump(), **_options(spec))
    except UserError as error:
        problems.append(f"no held-out error stands beside the fit: {error}")
        return None


def _approaches(
    asked: ApproachesSpec | None, spec: FitSpec | None, result: Fit | None, runs: pd.DataFrame,
    curves: pd.DataFrame | None, problems: list[str],
) -> Approaches | None:  # fmt: skip
    if asked is None or not finished(runs).any():
        return None
    law = result.law if result is not None and isinstance(result.law, Chinchilla) else Chinchilla()
    surface = {key: value for key, value in (_options(spec) if spec is not None else {}).items() if key != "where"}
    options = asked.model_dump(include={"y", "where", "budgets", "noise", "window", "at", "draws", "seed"})
    same_rows = result if spec is not None and spec.where == asked.where else None
    try:
        return compare_approaches(
            runs, curves if asked.read == "curves" else None, n=asked.n or law.n, d=law.d, law=surface,
            fitted=same_rows, **options,
        )  # fmt: skip
    except UserError as error:
        problems.append(str(error))
        return None


def _options(spec: FitSpec) -> dict[str, Any]:
    names = {"loss", "delta", "where", "bootstrap", "resample", "cluster", "intervals", "seed", "trust_units"}
    return spec.model_dump(include=names)


def _hold_out(spec: FitSpec, runs: pd.DataFrame, y: str) -> Holdout | None:
    if spec.holdout is None:
        return None
    cut = spec.holdout.model_dump(include={"by", "fraction", "below", "largest"})
    return holdout(make_law(spec.law, **spec.chosen_columns()), runs, y=y, **cut, **_options(spec))


def _best(runs: pd.DataFrame, y: str) -> Mapping[str, Any] | None:
    """The finished row of lowest loss."""
    if y not in runs.columns:
        return None
    losses = pd.to_numeric(runs.loc[finished(runs), y], errors="coerce")
    if losses.isna().all():
        return None
    row = runs[finished(runs)].iloc[int(np.nanargmin(losses.to_numpy(dtype=float)))]
    return {str(name): value for name, value in row.items()}


def _true_floor(runs: pd.DataFrame, y: str) -> float | None:
    """The entropy of the data in the units of `y`: what E should come out as; None where nobody knows."""
    if "val_entropy" not in runs.columns or runs["val_entropy"].isna().all():
        return None
    return {"val_loss": float(runs["val_entropy"].median()), "val_excess_loss": 0.0}.get(y)


def _claims(
    spec: FitSpec | None, result: Fit | None, held: Holdout | None, floor: float | None,
    best: Mapping[str, Any] | None, runs: pd.DataFrame, y: str, searched: Searched | None, rolled: Rollout | None,
) -> tuple[Claim, ...]:  # fmt: skip
    claims = []
    if result is not None:
        claims.append(Claim(law_sentence(result)))
    if held is not None and spec is not None and spec.holdout is not None:
        claims += _held_out_claims(held, spec.holdout.max_error)
    if rolled is not None:
        claims.append(Claim(rolled.sentence()))
    if result is not None and result.misfit is not None and result.misfit.bends:
        claims.append(Claim(f"The form of the law: {result.misfit.words}.", False))
    if result is not None and floor is not None and _reaches_the_floor(result.law):
        claims.append(_floor_claim(result, floor, held))
    if searched is not None:
        claims += [Claim(text) for text in search_sentences(runs, searched, y)]
    elif best is not None:
        claims += [*_best_mean_claim(runs, y), _best_claim(best, y)]
    return tuple(claims)


def _best_claim(best: Mapping[str, Any], y: str) -> Claim:
    name = best.get("label", best.get("id", "the best run"))
    return Claim(f"The lowest {y}, {float(best[y]):.4f}, was reached by {name}.")


def _best_mean_claim(runs: pd.DataFrame, y: str) -> list[Claim]:
    """With several seeds the best setting is the one of lowest mean: the luckiest single run is no answer."""
    done = runs[finished(runs)]
    varied = varied_factors(done)
    if not varied or "seed" not in done.columns or done["seed"].nunique() < 2:
        return []
    groups = done.groupby(varied, sort=False)[y].agg(["mean", "std", "count"])
    if groups["count"].min() < 2:
        return []
    at = int(np.argmin(groups["mean"].to_numpy()))
    values = groups.index[at] if len(varied) > 1 else (groups.index[at],)
    setting = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in zip(varied, values, strict=True))
    row = groups.iloc[at]
    seeds = f"{int(row['count'])} seeds"
    return [Claim(f"The lowest mean {y} over {seeds}, {row['mean']:.4f} (sd {row['std']:.4f}), was at {setting}.")]


def _reaches_the_floor(law: Law) -> bool:
    """Whether the law's E is the loss of unlimited model *and* data, which alone can equal the source's entropy.

    A law in the model's size at a fixed number of tokens levels off above it, as it should.
    """
    columns = set(law.columns)
    return law.floor is not None and ("flops" in columns or ("tokens" in columns and len(columns) > 1))


def law_sentence(result: Fit) -> str:
    """The law with its numbers and their 95 % intervals in one sentence."""
    found = result.conf_int().to_numpy()
    parts = [f"{name} = {value:.4g}" for name, value in result.params.items()]
    known = not np.isnan(found).all()
    if known:
        parts = [f"{text} [{low:.4g}, {high:.4g}]" for text, (low, high) in zip(parts, found, strict=True)]
    brackets = " (95 % intervals in brackets)" if known else ""
    fitted = f"fitted to {len(result.points)} runs{brackets}"
    return f"{result.y} = {result.law.formula} with {', '.join(parts)}, {fitted}."


def _held_out_claims(held: Holdout, limit: float) -> list[Claim]:
    """The error against its limit; and, apart from it, whether the intervals held what they say."""
    n, inside = len(held.table), int(held.table["inside"].sum())
    start = (
        f"Fitted to the {len(held.fit.points)} runs with {held.by} below {held.cut:.3g}, the law predicts the {n} "
        f"held-out run{'s' * (n != 1)}, up to {held.reach:.3g} times the {held.by},"
    )
    errors = f"with a largest error of {held.max_error:.2%} (mean {held.mean_error:.2%})"
    holds = held.max_error <= limit
    verdict = f"within the limit of {limit:.2%}" if holds else f"ABOVE the limit of {limit:.2%}: the prediction fails"
    claim = f"{start} {errors}, {verdict}."
    if not len(held.fit.draws):
        return [Claim(claim, holds)]
    if (narrow := held.misfit) is not None:
        return [Claim(claim, holds), Claim(f"The intervals of that prediction: {narrow}", False)]
    return [Claim(f"{claim} {inside} of {n} measured losses lie inside their 95 % interval.", holds)]


def _floor_claim(result: Fit, floor: float, held: Holdout | None) -> Claim:
    """E beside the truth, judged by the fit on all runs; the fit below the cut is told beside it."""
    symbol = str(result.law.floor)
    value = result.params[symbol]
    low, high = result.conf_int().loc[symbol].to_numpy(dtype=float)
    off = f"{value / floor - 1:+.2%} off" if floor > 0 else f"{value:.4g} off"
    beside = f"Fitted to all {len(result.points)} runs, the floor {symbol} = {value:.4f} "
    beside += f"stands beside the data's true floor {floor:.4f} ({off})"
    if not np.isfinite(low):
        return Claim(f"{beside}; without a bootstrap it has no interval.")
    interval = f"95 % interval [{low:.4f}, {high:.4f}]"
    also = f" {_floor_below_the_cut(held.fit, floor)}" if held is not None else ""
    if _reaches_zero(result) and floor > 0:
        return Claim(
            f"{beside}; its {interval} reaches down to zero: this fit has not identified the floor.{also}", False
        )
    if _covers(result, floor):
        return Claim(f"{beside}; its {interval} covers it.{also}", True)
    return Claim(f"{beside}; its {interval} does NOT cover it: this fit has not identified the floor.{also}", False)


def _covers(result: Fit, floor: float) -> bool:
    """Does the 95 % interval of the fitted floor hold the true one? A true floor of 0 is held by one that reaches 0."""
    low, high = result.conf_int().loc[str(result.law.floor)].to_numpy(dtype=float)
    reach = FLOOR_IS_ZERO * float(result.points[result.y].min()) if floor == 0 else 0.0
    return bool(low <= floor + reach and floor <= high)


def _reaches_zero(result: Fit) -> bool:
    """An interval from (nearly) no floor upwards covers any truth and identifies none."""
    low, _ = result.conf_int().loc[str(result.law.floor)].to_numpy(dtype=float)
    return bool(low <= FLOOR_IS_ZERO * float(result.points[result.y].min()))


def _floor_below_the_cut(small: Fit, floor: float) -> str:
    symbol = str(small.law.floor)
    low, high = small.conf_int().loc[symbol].to_numpy(dtype=float)
    verdict = "covers it too" if _covers(small, floor) else "does not cover it"
    if _reaches_zero(small) and floor > 0:
        verdict = "reaches down to zero and so says nothing about it"
    return (
        f"The fit on the {len(small.points)} smaller runs alone gives {symbol} = {small.params[symbol]:.4f} "
        f"[{low:.4f}, {high:.4f}], which {verdict}."
    )


def held_out_rows(held: Holdout) -> pd.DataFrame:
    """The held-out table for people: run, the cut's column, measured, predicted, lower, upper, error, inside."""
    name = "label" if "label" in held.table.columns else "id"
    kept = [name, held.by, "measured", "predicted", "lower", "upper", "error", "inside"]
    return held.table[kept].rename(columns={name: "run"})


def analysis_text(analysis: Analysis) -> str:
    """The block a terminal shows: the law, E beside the entropy, measured beside predicted, the optima."""
    lines: list[str] = []
    if analysis.fit is not None:
        lines += [analysis.fit.summary(), ""]
    if analysis.holdout is not None:
        table = held_out_rows(analysis.holdout)
        lines.append(f"held out: {len(table)} runs with {analysis.holdout.by} >= {analysis.holdout.cut:.3g}")
        width = max(len("run"), *(len(str(name)) for name in table["run"]))
        lines.append(f"  {'run':<{width}}  measured  predicted  {'95 % interval':<18}   error")
        for row in table.to_dict(orient="records"):
            interval = intervals.text(row["lower"], row["upper"], "{:.4f}")
            lines.append(f"  {row['run']!s:<{width}}  {row['measured']:8.4f}  {row['predicted']:9.4f}  {interval:<18}"
                         f"  {row['error']:+7.2%}")  # fmt: skip
        lines.append("")
    if analysis.approaches is not None:
        lines += [approach_text(analysis.approaches), ""]
    if analysis.ranking is not None:
        lines += [ranking_text(analysis.ranking), ""]
    if analysis.optima is not None:
        lines += [transfer_text(analysis.optima), ""]
    marks = {"holds": "holds: ", "fails": "FAILS: ", "undecided": "undecided: ", None: ""}
    lines += [f"{marks[claim.verdict]}{claim.text}" for claim in analysis.claims]
    lines += [f"not done: {problem}" for problem in analysis.problems]
    lines += [judged_text(analysis.judged)] if analysis.judged else []
    return "\n".join(lines)
