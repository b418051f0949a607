"""Optuna's own pruners: the trials of a search rebuilt in memory as optuna's, one of which is judged at a rung.

Nothing is kept by optuna. What it is told are the verdicts and records that lie in the results folder, so that every
judge of that folder at that moment decides the same; what a pruner notes in a trial stands in that trial's verdict.
A step is a percent of the horizon: runs of different length compare. A loss that is not finite counts as infinite.
"""

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.lock import LockedRun
from experiments.search.pruning import Ruling
from experiments.search.search import Search
from experiments.search.spec import Pruner, check_optuna_pruner, percent
from experiments.search.verdicts import Verdict, read_verdict
from experiments.store import FINISHED, StudyFolder, published_record, state_of
from nanogpt.config import UserError, did_you_mean

if TYPE_CHECKING:
    import optuna

MISSING = "{package} is not installed, and the search needs it; pip install 'nanogpt-scaling[hpo]'"
END = 100  # the step at which a finished run was measured last
CLASSES = {
    "median": "MedianPruner", "percentile": "PercentilePruner", "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner", "threshold": "ThresholdPruner", "patient": "PatientPruner",
}  # fmt: skip


def load_optuna() -> Any:
    """The package, told to be quiet. Raises UserError when it is missing."""
    try:
        import optuna
    except ImportError:
        raise UserError(f"sweep: {MISSING.format(package='optuna')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def study_name(search: Search, cell: int) -> str:
    """What optuna calls the search of a cell; changes with the sampler's seed, and with it Hyperband's brackets."""
    return f"{search.hash}/{cell}"


def make_pruner(pruner: Pruner) -> "optuna.pruners.BasePruner":
    """The pruner of optuna that a study names. Raises UserError for an unknown setting or a wrong value.

    Its least resource is the first rung unless the study says otherwise: optuna's own guess, one percent, would judge
    three or four rungs at once at the first one that there is.
    """
    return _made(dict(pruner.optuna), percent(pruner.at[0]))


def _made(settings: dict[str, Any], first: int) -> Any:
    name = settings.pop("pruner", None)
    try:
        check_optuna_pruner(name)
    except ValueError as error:
        raise UserError(f"sweep.pruner: {error}") from None
    make = getattr(load_optuna().pruners, CLASSES[name])
    known = list(inspect.signature(make).parameters)
    for key in settings:
        if key not in known:
            raise UserError(f"sweep.pruner.optuna: {name} has no setting {key!r}{did_you_mean(key, known)}")
    defaults = {"min_resource": first, "max_resource": END, "wrapped_pruner": None}
    settings = {key: value for key, value in defaults.items() if key in known} | settings
    if isinstance(settings.get("wrapped_pruner"), Mapping):
        settings["wrapped_pruner"] = _made(dict(settings["wrapped_pruner"]), first)
    try:
        return make(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"sweep.pruner.optuna: {name}: {error}") from None


def check_pruner(pruner: Pruner) -> None:
    """Raises UserError when a pruner cannot be made, or breaks at a trial: optuna checks some settings only there."""
    optuna = load_optuna()
    study = optuna.create_study(pruner=make_pruner(pruner))
    steps = {percent(fraction): 1.0 for fraction in pruner.at}
    states = optuna.trial.TrialState
    for state in (*[states.COMPLETE] * 6, states.RUNNING):
        value = None if state == states.RUNNING else 1.0
        study.add_trial(optuna.trial.create_trial(state=state, value=value, intermediate_values=steps))
    try:
        study.pruner.prune(study, study.get_trials(deepcopy=False)[-1])
    except Exception as error:
        raise UserError(f"sweep.pruner.optuna: {type(error).__name__}: {error}") from None


@dataclass
class ByOptuna:
    """Judges by one of optuna's pruners, among the runs of the same cell and seed."""

    study: StudyFolder
    search: Search
    _finished: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._optuna = load_optuna()
        self._states = self._optuna.trial.TrialState

    def __call__(self, run: LockedRun, rung: int, value: float | None, others: Mapping[int, float]) -> Ruling:
        assert run.trial is not None, "only trials are judged"
        cell, own = self.search.cell(run.trial), self._number(run)
        study = self._optuna.create_study(
            direction="minimize", pruner=make_pruner(self.search.pruner), study_name=study_name(self.search, cell)
        )
        told = {self._number(peer): self._told(peer) for peer in self._peers(run)}
        told[own] = self._judged(run, rung, value)
        for number in range(max(told) + 1):
            # A refused proposal has no run, but keeps its number: Hyperband's brackets go by it.
            study.add_trial(told.get(number) or self._trial(self._states.FAIL))
        ends = study.pruner.prune(study, study.get_trials(deepcopy=False)[own])
        state = study.get_trials(deepcopy=False)[own].system_attrs
        over = (self._states.COMPLETE, self._states.PRUNED)
        cells = len(self.search.cells)
        finished = [number * cells + cell for number, trial in sorted(told.items()) if trial.state in over]
        return Ruling(not ends, None, finished, dict(state))

    def _number(self, run: LockedRun) -> int:
        assert run.trial is not None, "only trials are told"
        return run.trial // len(self.search.cells)

    def _peers(self, run: LockedRun) -> list[LockedRun]:
        """The runs that this one is compared with."""
        assert run.trial is not None, "only trials are judged"
        cell, seed = self.search.cell(run.trial), run.config["seed"]
        runs = [other for other in self.study.runs() if other.trial is not None and other.id != run.id]
        return [other for other in runs if self.search.cell(other.trial or 0) == cell and other.config["seed"] == seed]

    def _judged(self, run: LockedRun, rung: int, value: float | None) -> "optuna.trial.FrozenTrial":
        """The run itself, at work, as it stands at this rung."""
        before = [verdict for verdict in self._verdicts(run) if verdict.rung < rung]
        now = {percent(self.search.pruner.at[rung]): math.inf if value is None else value}
        return self._trial(self._states.RUNNING, before, now)

    def _told(self, run: LockedRun) -> "optuna.trial.FrozenTrial":
        if run.id in self._finished:
            return self._finished[run.id]
        status, verdicts = state_of(self.study.folder(run)).status, self._verdicts(run)
        record = published_record(self.study.folder(run)) if status in FINISHED else None
        loss = record.val_loss if record is not None else None
        if status == "completed" and loss is not None:
            told = self._trial(self._states.COMPLETE, verdicts, {END: loss}, loss)
        elif status == "pruned":
            told = self._trial(self._states.PRUNED, verdicts)
        else:
            ended = status in ("completed", "diverged", "failed")
            told = self._trial(self._states.FAIL if ended else self._states.RUNNING, verdicts)
        if status in FINISHED and len(verdicts) == len(self.search.pruner.at):
            self._finished[run.id] = told
        return told

    def _verdicts(self, run: LockedRun) -> list[Verdict]:
        folder = self.study.folder(run)
        found = (read_verdict(folder, rung) for rung in range(len(self.search.pruner.at)))
        return [verdict for verdict in found if verdict is not None]

    def _trial(
        self, state: Any, verdicts: "list[Verdict] | None" = None, more: Mapping[int, float] | None = None,
        value: float | None = None,
    ) -> "optuna.trial.FrozenTrial":  # fmt: skip
        verdicts = verdicts or []
        steps = {percent(each.fraction): math.inf if each.value is None else each.value for each in verdicts}
        noted = verdicts[-1].state if verdicts else {}
        return self._optuna.trial.create_trial(
            state=state, value=value, intermediate_values={**steps, **(more or {})}, system_attrs=noted
        )
