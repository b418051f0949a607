"""What a plan warns of: designs that cannot tell size from data, data that is read again and again, short runs."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.analysis.spec import FitSpec
from experiments.lock import LockedRun
from experiments.planner.amounts import amount
from experiments.planner.forecast import Forecast

ONE_RATIO = 1.02  # tokens per parameter within 2 % of each other are one ratio: horizons are rounded to steps
COLLINEAR = 1e9  # as a fit counts it
SHORT = 2.0  # a run shorter than so many warm-ups has hardly trained


def cautions(runs: Sequence[LockedRun], spec: FitSpec | None, told: Forecast | None) -> list[str]:
    """Warnings in words, the gravest first."""
    found = []
    if spec is not None and spec.law == "chinchilla":
        found += _fixed_ratio(runs, told)
    if told is not None and told.condition > COLLINEAR and not found:
        found.append(
            f"the fit is ill-conditioned (condition number {told.condition:.1e}, bad from {COLLINEAR:.0e} on): "
            "the runs do not move the law's inputs apart, so single parameters will not be identified"
        )
    if told is not None and told.unidentified and not found:
        found.append(
            f"these runs are not expected to identify {' and '.join(told.unidentified)}: their intervals would say "
            "next to nothing"
        )
    return found + _repeated(runs) + _short(runs)


def _fixed_ratio(runs: Sequence[LockedRun], told: Forecast | None) -> list[str]:
    ratios = [run.tokens / run.n_params_non_embedding for run in runs if run.n_params_non_embedding]
    sizes = {run.n_params_non_embedding for run in runs}
    if len(sizes) < 2 or not ratios or max(ratios) > ONE_RATIO * min(ratios):
        return []
    known = told is not None and math.isfinite(told.condition)
    number = f" (condition number {told.condition:.1e})" if known and told is not None else ""
    return [
        f"every run has the same {ratios[0]:.3g} tokens per parameter, so size and data move together and the fit "
        f"cannot tell A/N^alpha from B/D^beta{number}; vary the ratio, e.g. `plan STUDY --propose tokens_per_param`"
    ]


def _repeated(runs: Sequence[LockedRun]) -> list[str]:
    epochs = {run.label: run.tokens / run.train_tokens for run in runs if run.train_tokens}
    over = {label: count for label, count in epochs.items() if count > 1}
    if not over:
        return []
    label = max(over, key=over.__getitem__)
    tokens = next(run.train_tokens for run in runs if run.label == label) or 0
    return [
        f"{_runs(len(over))} read the training data more than once, {label} {over[label]:.3g} times (the corpus has "
        f"{amount(tokens, 'tokens')}): repeated tokens count for less (Muennighoff et al. 2023), so D overstates them"
    ]


def _short(runs: Sequence[LockedRun]) -> list[str]:
    def warm_up(run: LockedRun) -> Any:
        return run.config["schedule"].get("warmup_iters") or 0

    short = [run for run in runs if run.steps < SHORT * warm_up(run)]
    if not short:
        return []
    run = min(short, key=lambda run: run.steps)
    verb = "trains" if len(short) == 1 else "train"
    return [
        f"{_runs(len(short))} {verb} for less than two warm-ups ({run.label}: {run.steps} steps, "
        f"{warm_up(run)} of warm-up): leave them out of the fit with `fit: {{where: ...}}`"
    ]


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count > 1)}"
