"""Which trials end early: asynchronous successive halving, the median rule, a percentile rule.

Li et al. 2018 (ASHA, arXiv:1810.05934) let a trial go on from a rung when it is among the best 1/eta of those that the
rung has seen, and never wait for the others. This is its stopping form: a trial that is not among them ends at once,
where the paper's pauses and may be promoted later; the first trials at a rung all go on. `keep` is 1/eta.
The median rule (Golovin et al. 2017, Vizier, section 3.2.2) compares with the trials before at the same rung.
Optuna's own pruners stand in `optunapruning.py`; whichever decides, the verdicts are these files.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.lock import LockedRun
from experiments.search.rungs import rung_steps
from experiments.search.search import Search
from experiments.search.spec import Pruner
from experiments.search.verdicts import Verdict, is_pruned, read_verdict, write_verdict
from experiments.store import StudyFolder, published_record
from nanogpt.record import attempt_folder, read_history


def threshold(pruner: Pruner, value: float, others: Sequence[float]) -> float | None:
    """The worst loss that goes on at a rung, among this run's and the others'; None while too few have been there.

    Successive halving counts this run in: of n values the best max(1, floor(keep * n)) go on. The median and percentile
    rules ask where the others stand: the loss that the share `keep` of them does not exceed.
    """
    if len(others) + 1 < pruner.least:
        return None
    seen = sorted([value, *others] if pruner.kind == "successive_halving" else others)
    if not seen:
        return None
    return seen[max(1, math.floor(pruner.share * len(seen) + 1e-9)) - 1]


@dataclass(frozen=True)
class Ruling:
    """What a rule says of a run at a rung: the worst loss that goes on where it has one, or only whether it goes on.

    `finished` are the trials that it counted as finished, `state` is what it wants back with this trial.
    """

    goes_on: bool
    threshold: float | None = None
    finished: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """Decides on one run at one rung."""

    def __call__(self, run: LockedRun, rung: int, value: float | None, others: Mapping[int, float]) -> Ruling:
        """`value` is the run's loss there, None where it is not finite; `others` those of earlier trials, by number."""


@dataclass(frozen=True)
class ByThreshold:
    """The rules of this module."""

    pruner: Pruner

    def __call__(self, run: LockedRun, rung: int, value: float | None, others: Mapping[int, float]) -> Ruling:
        if value is None:
            return Ruling(True)
        limit = threshold(self.pruner, value, list(others.values()))
        finite = limit if limit is not None and math.isfinite(limit) else None
        return Ruling(limit is None or value <= limit, finite)


def rule_of(study: StudyFolder, search: Search) -> Rule:
    """What decides in a study. Loads optuna where the study asks for one of its pruners."""
    if search.pruner.kind != "optuna":
        return ByThreshold(search.pruner)
    from experiments.search.optunapruning import ByOptuna

    return ByOptuna(study, search)


@dataclass
class Judge:
    """Judges the runs of one worker at their rungs, from what lies in the results folder."""

    study: StudyFolder
    search: Search
    rule: Rule | None = None  # default: that of the study, made when it is first needed
    _sizes: dict[Path, int] = field(default_factory=dict)

    def ends(self, run: LockedRun, generation: int) -> bool:
        """Whether a run at work is to end now. Writes a verdict for every rung that it has reached since."""
        folder = self.study.folder(run)
        history = attempt_folder(folder, generation) / "history.jsonl"
        if not self._has_grown(history):
            return is_pruned(folder)
        lines = read_history(history, forgiving=True)
        for rung, step in enumerate(rung_steps(self.search.pruner, run)):
            verdict = read_verdict(folder, rung) or self._judged(folder, run, rung, step, lines)
            if verdict is None:
                return False
            if not verdict.goes_on:
                return True
        return False

    def is_due(self, run: LockedRun, generation: int) -> bool:
        """Whether a run at work has reached a rung since the last look at which nobody has judged it."""
        folder = self.study.folder(run)
        history = attempt_folder(folder, generation) / "history.jsonl"
        if not self._has_grown(history):
            return False
        lines = read_history(history, forgiving=True)
        steps = enumerate(rung_steps(self.search.pruner, run))
        reached = (rung for rung, step in steps if _loss_from(lines, step) is not None)
        return any(read_verdict(folder, rung) is None for rung in reached)

    def conclude(self, run: LockedRun) -> None:
        """Write down the rungs that a finished run has passed unjudged: later runs compare with them."""
        folder = self.study.folder(run)
        record = published_record(folder)
        if record is None or record.status == "pruned":
            return
        lines = read_history(folder / "history.jsonl", forgiving=True)
        for rung, step in enumerate(rung_steps(self.search.pruner, run)):
            if read_verdict(folder, rung) is None:
                value = _loss_from(lines, step)
                if value is not None or record.status == "diverged":
                    write_verdict(folder, self._verdict(run, rung, step, value, late=True))

    def _has_grown(self, history: Path) -> bool:
        """A look at the size spares reading histories that have not changed since the last one."""
        size = history.stat().st_size if history.exists() else 0
        before, self._sizes[history] = self._sizes.get(history), size
        return size != before

    def _judged(
        self, folder: Path, run: LockedRun, rung: int, step: int, lines: Sequence[Mapping[str, Any]]
    ) -> Verdict | None:
        value = _loss_from(lines, step)
        if value is None:
            return None
        return write_verdict(folder, self._verdict(run, rung, step, value))

    def _verdict(self, run: LockedRun, rung: int, step: int, value: float | None, late: bool = False) -> Verdict:
        """A run that is over goes on whatever the rule says; one that remembers each trial is asked all the same."""
        others = {} if late else dict(self._others(run, rung))
        self.rule = self.rule or rule_of(self.study, self.search)
        ruling = self.rule(run, rung, value, others)
        return Verdict(
            rung=rung,
            fraction=self.search.pruner.at[rung],
            step=step,
            value=value,
            compared_with=len(others),
            compared=list(others),
            threshold=None if late else ruling.threshold,
            goes_on=late or ruling.goes_on,
            late=late,
            finished=ruling.finished,
            state=ruling.state,
        )

    def _others(self, run: LockedRun, rung: int) -> Iterator[tuple[int, float]]:
        """Trial and loss of the runs of the same search and seed that were at a rung; infinite where it had none."""
        assert run.trial is not None, "only trials are judged"
        for other in self.study.runs():
            if other.trial is None or other.id == run.id or other.config["seed"] != run.config["seed"]:
                continue
            if self.search.cell(other.trial) == self.search.cell(run.trial):
                verdict = read_verdict(self.study.folder(other), rung)
                if verdict is not None:
                    yield other.trial, math.inf if verdict.value is None else verdict.value


def _loss_from(lines: Sequence[Mapping[str, Any]], step: int) -> float | None:
    """The validation loss of the first evaluation at or after a step; None before that, or where it is not finite."""
    losses = (line.get("val_loss") for line in lines if line["step"] >= step and "val_loss" in line)
    return next(losses, None)
