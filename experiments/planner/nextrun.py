"""`plan --next`: which run, added to the results there are, would teach the fit most, at a cost that may be limited."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from experiments.analysis.spec import FitSpec, check_fit_spec, column_among
from experiments.lock import LockedRun
from experiments.planner.amounts import amount, duration, energy, short, table_lines
from experiments.planner.forecast import fitted, kept_runs, known_columns
from experiments.planner.ladder import ladder, studied
from experiments.planner.rates import Rate, shape_key
from experiments.planner.settings import PlanSettings
from experiments.store import FINISHED, StudyFolder
from nanogpt.config import UserError, did_you_mean

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit

SHOWN = 5
LONGER = (2.0, 4.0, 8.0)  # than the longest run; never shorter than the shortest, where laws of this kind break down
BEYOND = 2.5  # times the largest size of the study
EVERYTHING = "all"


@dataclass(frozen=True)
class Candidate:
    """A run that may be added: a shape of the study at some length, and what it would do to the interval."""

    run: LockedRun
    settings: dict[str, int]
    narrower: float  # standard error with the run over that without
    seeds: int  # how many runs of the study have these very settings already
    seconds: float | None = None  # its wall time, where the speed of its shape is known


Speeds = Callable[[Sequence[LockedRun]], Mapping[str, Rate]]


def next_text(study: StudyFolder, what: str, settings: PlanSettings, speeds: Speeds = lambda runs: {}) -> str:
    """The best runs to add, best first, as a page; the last line can be copied into the study.

    `speeds` tells the rates of shapes as far as they are known. Raises UserError when there are too few results for a
    fit, `what` is none of its parameters, or no run keeps to the limits.
    """
    spec = check_fit_spec(study.lock.fit) if study.lock.fit is not None else FitSpec()
    found = fitted(spec, str(study.path)) if study.path.exists() else None
    if found is None:
        raise UserError(f"{study.path}: --next: needs results that a law is fitted to; `run` the study first")
    most = settings.flops or max(run.flops for run in study.runs())
    ranked = rank(study, spec, found, what, most, settings.smallest)
    if not ranked:
        raise UserError(f"{study.path}: --next: no run of these shapes costs at most {amount(most, 'FLOP')}")
    ranked, unknown = _timed(ranked, speeds([each.run for each in ranked]), settings.budget)
    if not ranked:
        why = f"; the speed of {unknown} is not known: --calibrate measures it" if unknown else ""
        raise UserError(f"{study.path}: --next: no run is known to take at most {duration(settings.budget or 0)}{why}")
    sizes = studied(kept_runs(finished_runs(study), spec), settings.smallest)
    outside = sizes.told([each.run.n_params_non_embedding for each in ranked[:SHOWN]])
    about = "all parameters together" if what == EVERYTHING else what
    limit = "" if settings.flops is not None else ", the most expensive run so far; --flops allows more"
    rows = [
        [words(each), short(each.run.tokens), short(each.run.flops),
         "?" if each.seconds is None else duration(each.seconds), f"{1 - each.narrower:.0%}",
         f"seed {each.seeds + 1} of such runs" if each.seeds else "new"]
        for each in ranked[:SHOWN]
    ]  # fmt: skip
    return "\n".join([
        f"{study.lock.name}: the run to add that tells most of {about}, at up to {amount(most, 'FLOP')}{limit}",
        *table_lines(["shape", "tokens", "FLOPs", "time", "intervals narrower by", "is"], rows),
        f"  by {found.law.name}, the fit to {len(found.points)} finished runs",
        *([f"  warning: {outside}"] if outside else []),
        *_limits(settings, ranked[0], unknown),
        f"  add the first one to the sweep: `points: [{_as_point(ranked[0])}]`",
    ])  # fmt: skip


def words(candidate: Candidate) -> str:
    """The shape as settings."""
    return " ".join(f"{key}={value}" for key, value in candidate.settings.items()) or candidate.run.label


def _timed(ranked: Sequence[Candidate], rates: Mapping[str, Rate], budget: float | None) -> tuple[list[Candidate], int]:
    """The candidates with their times: under a budget those alone that keep to it; and how many have no known speed."""
    timed = [
        replace(each, seconds=rate.seconds(each.run) if (rate := rates.get(shape_key(each.run))) else None)
        for each in ranked
    ]
    unknown = sum(each.seconds is None for each in timed)
    if budget is None:
        return timed, unknown
    return [each for each in timed if each.seconds is not None and each.seconds <= budget], unknown


def _limits(settings: PlanSettings, first: Candidate, unknown: int) -> list[str]:
    """What the limits and prices that were given come to."""
    lines = []
    if settings.budget is not None:
        left_out = f"; {unknown} more are left out, as their speed is not known: --calibrate" if unknown else ""
        lines.append(f"  budget: each takes at most {duration(settings.budget)}{left_out}")
    hours = None if first.seconds is None else first.seconds / 3600
    told = {"price": settings.price, "power": settings.power}
    if any(value is not None for value in told.values()):
        if hours is None:
            return [*lines, "  money and energy: unknown while the speed of its shape is: --calibrate measures it"]
        bill = [f"{settings.currency} {hours * settings.price:.3g}"] if settings.price is not None else []
        bill += [energy(hours * settings.power)] if settings.power is not None else []
        lines.append(f"  the first one takes {duration(hours * 3600)} on one device: {' and '.join(bill)}")
    return lines


def rank(
    study: StudyFolder, spec: FitSpec, found: "Fit", what: str, most: float, smallest: int | None = None
) -> list[Candidate]:
    """Every candidate that costs at most `most` FLOPs, the most informative first, the cheaper one of equals."""
    import numpy as np
    import pandas as pd

    from experiments.analysis.design import allocation_exponent, expected, jacobian, narrowing, residual_noise

    law, params = found.law, dict(found.params)
    noise = residual_noise(found.residuals, len(params))
    now = expected(law, params, found.points, noise, spec.loss, spec.delta)
    if not np.isfinite(now.covariance).all():
        raise UserError(f"{study.path}: --next: the runs so far do not identify {law.name}; vary its inputs first")
    offered = candidates(study, spec, most, smallest)
    if not offered:
        return []
    runs = [run for run, _ in offered]
    rows = pd.DataFrame([known_columns(run) for run in runs])
    for name in law.columns:
        rows[name] = rows[column_among(map(str, rows.columns), name, "fit")].astype(float)
    for name in law.label_columns:
        rows[name] = rows[column_among(map(str, rows.columns), name, "fit")].astype(str)
    a = allocation_exponent(law)
    known = [EVERYTHING, *params, *(["a"] if a is not None else [])]
    if what not in known:
        raise UserError(f"command line: --next: no parameter {what!r} in {law.name}{did_you_mean(what, known)}")
    quantity = None if what == EVERYTHING else a if what == "a" and a is not None else itemgetter(what)
    narrower = narrowing(now, jacobian(law, params, rows), quantity)
    same = [sum(_settings(other) == _settings(run) for other in study.runs()) for run in runs]
    ranked = [
        Candidate(run, settings, float(share), count)
        for (run, settings), share, count in zip(offered, narrower, same, strict=True)
    ]
    return sorted(ranked, key=lambda each: (round(each.narrower, 3), each.run.flops))


def _settings(run: LockedRun) -> tuple[Any, ...]:
    return (run.n_params, run.tokens, run.config["train"]["batch_size"], run.config["optimizer"]["learning_rate"])


def finished_runs(study: StudyFolder) -> list[LockedRun]:
    states = study.states()
    return [run for run in study.runs() if states[run.id].status in FINISHED]


def candidates(
    study: StudyFolder, spec: FitSpec, most: float, smallest: int | None = None
) -> list[tuple[LockedRun, dict[str, int]]]:
    """Runs within a cost, of the shapes that the fit has and of others between and above them, at its lengths and
    longer ones, each with the settings that make its shape. Nothing below what the study has is offered unless
    `smallest` allows it. No text is read twice unless the study does so already."""
    finished = kept_runs(finished_runs(study), spec)
    sizes = studied(finished, smallest)
    lengths = {run.tokens for run in finished}
    lengths |= {round(max(lengths) * factor) for factor in LONGER}
    corpus = max([finished[0].train_tokens or max(lengths), *(run.tokens for run in finished)])
    rungs = [rung for rung in sizes.without_smaller(ladder(finished, BEYOND * sizes.most, sizes.allowed))
             if rung.n <= BEYOND * sizes.most]  # fmt: skip
    offered = [(rung.trained(tokens), rung.settings) for rung in rungs for tokens in sorted(lengths)]
    return [(run, made) for run, made in offered if run.flops <= most * (1 + 1e-9) and run.tokens <= corpus]


def _as_point(best: Candidate) -> str:
    """The run as a point of a sweep: its shape, its length in tokens, and another seed where there is one like it."""
    found = {**best.settings, "tokens": best.run.tokens}
    if best.seeds:
        found["seed"] = best.run.config["seed"] + best.seeds
    return "{" + ", ".join(f"{key}: {value}" for key, value in found.items()) + "}"
