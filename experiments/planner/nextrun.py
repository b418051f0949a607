"""`plan --next`: which run, added to the results there are, would teach the fit most, at a cost that may be limited."""

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from experiments.analysis.spec import FitSpec, check_fit_spec, column_among
from experiments.lock import LockedRun
from experiments.planner.amounts import amount, short, table_lines
from experiments.planner.forecast import fitted, known_columns
from experiments.planner.ladder import ladder
from experiments.planner.settings import PlanSettings
from experiments.store import FINISHED, StudyFolder
from nanogpt.config import UserError, did_you_mean

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit

SHOWN = 5
LONGER = (2.0, 4.0, 8.0)  # than the longest run; never shorter than the shortest, where laws of this kind break down
BEYOND = 2.5  # times the smallest and the largest size of the study
EVERYTHING = "all"


@dataclass(frozen=True)
class Candidate:
    """A run that may be added: a shape of the study at some length, and what it would do to the interval."""

    run: LockedRun
    settings: dict[str, int]
    narrower: float  # standard error with the run over that without
    seeds: int  # how many runs of the study have these very settings already


def next_text(study: StudyFolder, what: str, settings: PlanSettings) -> str:
    """The best runs to add, best first, as a page; the last line can be copied into the study.

    Raises UserError when there are too few results for a fit, or `what` is none of its parameters.
    """
    spec = check_fit_spec(study.lock.fit) if study.lock.fit is not None else FitSpec()
    found = fitted(spec, str(study.path)) if study.path.exists() else None
    if found is None:
        raise UserError(f"{study.path}: --next: needs results that a law is fitted to; `run` the study first")
    most = settings.flops or max(run.flops for run in study.runs())
    ranked = rank(study, spec, found, what, most)
    if not ranked:
        raise UserError(f"{study.path}: --next: no run of these shapes costs at most {amount(most, 'FLOP')}")
    about = "all parameters together" if what == EVERYTHING else what
    limit = "" if settings.flops is not None else ", the most expensive run so far; --flops allows more"
    rows = [
        [words(each), short(each.run.tokens), short(each.run.flops), f"{1 - each.narrower:.0%}",
         f"seed {each.seeds + 1} of such runs" if each.seeds else "new"]
        for each in ranked[:SHOWN]
    ]  # fmt: skip
    return "\n".join([
        f"{study.lock.name}: the run to add that tells most of {about}, at up to {amount(most, 'FLOP')}{limit}",
        *table_lines(["shape", "tokens", "FLOPs", "intervals narrower by", "is"], rows),
        f"  by {found.law.name}, the fit to {len(found.points)} finished runs",
        f"  add the first one to the sweep: `points: [{_as_point(ranked[0])}]`",
    ])  # fmt: skip


def words(candidate: Candidate) -> str:
    """The shape as settings."""
    return " ".join(f"{key}={value}" for key, value in candidate.settings.items()) or candidate.run.label


def rank(study: StudyFolder, spec: FitSpec, found: "Fit", what: str, most: float) -> list[Candidate]:
    """Every candidate that costs at most `most` FLOPs, the most informative first, the cheaper one of equals."""
    import numpy as np
    import pandas as pd

    from experiments.analysis.design import allocation_exponent, expected, jacobian, narrowing, residual_noise

    law, params = found.law, dict(found.params)
    noise = residual_noise(found.residuals, len(params))
    now = expected(law, params, found.points, noise, spec.loss, spec.delta)
    if not np.isfinite(now.covariance).all():
        raise UserError(f"{study.path}: --next: the runs so far do not identify {law.name}; vary its inputs first")
    offered = candidates(study, most)
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


def candidates(study: StudyFolder, most: float) -> list[tuple[LockedRun, dict[str, int]]]:
    """Runs within a cost, of the study's shapes and of others like them, at its lengths and longer ones, each with the
    settings that make its shape. No text is read twice unless the study does so already."""
    states = study.states()
    finished = [run for run in study.runs() if states[run.id].status in FINISHED]
    sizes = [run.n_params_non_embedding for run in finished]
    lengths = {run.tokens for run in finished}
    lengths |= {round(max(lengths) * factor) for factor in LONGER}
    corpus = max([finished[0].train_tokens or max(lengths), *(run.tokens for run in finished)])
    rungs = [rung for rung in ladder(finished, BEYOND * max(sizes), min(sizes) / BEYOND)
             if min(sizes) / BEYOND <= rung.n <= BEYOND * max(sizes)]  # fmt: skip
    offered = [(rung.trained(tokens), rung.settings) for rung in rungs for tokens in sorted(lengths)]
    return [(run, made) for run, made in offered if run.flops <= most * (1 + 1e-9) and run.tokens <= corpus]


def _as_point(best: Candidate) -> str:
    """The run as a point of a sweep: its shape, its length in tokens, and another seed where there is one like it."""
    found = {**best.settings, "tokens": best.run.tokens}
    if best.seeds:
        found["seed"] = best.run.config["seed"] + best.seeds
    return "{" + ", ".join(f"{key}: {value}" for key, value in found.items()) + "}"
