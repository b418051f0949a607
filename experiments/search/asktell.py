"""Optuna by ask and tell: a study rebuilt in memory from earlier trials, asked for one more. Optuna stores nothing.

Run as a module it checks a sampler and a pruner: one line and status 2 when they cannot be made. Only this module and
`optunapruning.py` import optuna.
"""

import inspect
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from experiments.search.optunapruning import MISSING, check_pruner, load_optuna, make_pruner, study_name
from experiments.search.search import Search
from experiments.search.spec import Dimension, Pruner, Sampler
from nanogpt.config import UserError, did_you_mean

if TYPE_CHECKING:
    import optuna

CLASSES = {"tpe": "TPESampler", "cmaes": "CmaEsSampler", "gp": "GPSampler", "random": "RandomSampler"}
PRACTICE = 12
NEEDS = {"cmaes": ("cmaes",), "gp": ("scipy", "torch")}


@dataclass(frozen=True)
class Told:
    """An earlier trial of the same search: its settings, its loss if it has one, and what the sampler kept in it."""

    settings: Mapping[str, Any]
    value: float | None = None
    is_pruned: bool = False
    is_open: bool = False
    at_rungs: Mapping[int, float] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What a sampler proposes, and what it wants back with that trial."""

    settings: dict[str, Any]
    state: dict[str, Any]


def ask(search: Search, cell: int, earlier: Sequence[Told]) -> Asked:
    """The next settings for a cell: a function of the earlier trials and the seed.

    A trial without a loss that is no longer open (diverged, refused) is told as the worst loss known: it should be
    avoided as that one is. Raises UserError when optuna is missing.
    """
    optuna = load_optuna()
    distributions = {key: _distribution(dimension, key in search.whole) for key, dimension in search.space.items()}
    sampler = make_sampler(search.sampler, _seed(search.sampler.seed, cell, len(earlier)))
    # Hyperband's brackets are made of the study's name; a sampler that knows them learns within one.
    pruner = make_pruner(search.pruner) if search.pruner.kind == "optuna" else None
    name = study_name(search, cell)
    study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner, study_name=name)
    values = [trial.value for trial in earlier if trial.value is not None]
    worst = max(values, default=None)
    for trial in earlier:
        study.add_trial(_frozen(search, trial, worst, distributions))
    asked = study.ask(distributions)
    # What a sampler keeps in a trial (CMA-ES its whole state) must stand there again when the study is rebuilt.
    state = study.get_trials(deepcopy=False)[asked.number].system_attrs
    settings = {key: _setting(search, key, asked.params[key]) for key in search.space}
    return Asked(settings, json.loads(json.dumps(state)))


def make_sampler(sampler: Sampler, seed: int) -> Any:
    """The sampler of optuna that a study names. Raises UserError for an unknown setting or a missing package."""
    optuna = load_optuna()
    settings = dict(sampler.optuna)
    name = settings.pop("sampler", "tpe")
    for package in NEEDS.get(name, ()):
        try:
            __import__(package)
        except ImportError:
            raise UserError(f"sweep.sampler: {MISSING.format(package=package)}") from None
    make = getattr(optuna.samplers, CLASSES[name])
    known = [key for key in inspect.signature(make).parameters if key != "seed"]
    for key in settings:
        if key not in known:
            raise UserError(f"sweep.sampler.optuna: {name} has no setting {key!r}{did_you_mean(key, known)}")
    try:
        return make(seed=seed, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"sweep.sampler.optuna: {error}") from None


def check_sampler(sampler: Sampler) -> None:
    """Raises UserError when a sampler cannot be made, or breaks when asked: optuna checks most settings only there."""
    optuna = load_optuna()
    study = optuna.create_study(sampler=make_sampler(sampler, 0))
    space: dict[str, Any] = {key: optuna.distributions.FloatDistribution(0.0, 1.0) for key in ("x", "y")}
    try:
        for index in range(PRACTICE):  # the first ones, before a sampler has learnt anything, are drawn at random
            trial = study.ask(space)
            study.tell(trial, (trial.params["x"] - 0.5) ** 2 + index / PRACTICE)
    except Exception as error:
        raise UserError(f"sweep.sampler.optuna: optuna breaks with {sampler.optuna}: {error}") from None


def _seed(seed: int, cell: int, number: int) -> int:
    """Every trial has a seed of its own: with one for all, a rebuilt sampler would draw the same numbers again."""
    return int.from_bytes(sha256(f"{seed}/{cell}/{number}".encode()).digest()[:4], "big")


def _distribution(dimension: Dimension, is_whole: bool) -> "optuna.distributions.BaseDistribution":
    import optuna

    if dimension.choice is not None:
        # By index: optuna takes no lists or mappings, and to it the order of choices says nothing anyway.
        return optuna.distributions.CategoricalDistribution(tuple(range(len(dimension.choice))))
    low, high = dimension.ends
    log = dimension.log is not None
    if dimension.whole is not None or is_whole:
        return optuna.distributions.IntDistribution(math.ceil(low), math.floor(high), log=log)
    return optuna.distributions.FloatDistribution(low, high, log=log)


def _setting(search: Search, key: str, value: Any) -> Any:
    choice = search.space[key].choice
    if choice is not None:
        return choice[value]
    return value if isinstance(value, int) else float(f"{value:.12g}")


def _parameter(search: Search, key: str, value: Any) -> Any:
    """A setting as optuna knows it."""
    choice = search.space[key].choice
    return value if choice is None else choice.index(value)


def _frozen(
    search: Search, trial: Told, worst: float | None, distributions: Mapping[str, Any]
) -> "optuna.trial.FrozenTrial":
    import optuna

    states = optuna.trial.TrialState
    value = trial.value if trial.value is not None else worst
    ended = states.FAIL if value is None else states.PRUNED if trial.is_pruned else states.COMPLETE
    state = states.RUNNING if trial.is_open else ended
    return optuna.trial.create_trial(
        state=state,
        value=None if state in (states.RUNNING, states.FAIL) else value,
        params={key: _parameter(search, key, value) for key, value in trial.settings.items()},
        distributions=dict(distributions),
        intermediate_values=dict(trial.at_rungs),
        system_attrs=dict(trial.state),
    )


def main() -> int:
    """Check the sampler and the pruner on stdin, given as JSON."""
    asked = json.load(sys.stdin)
    sampler, pruner = Sampler.model_validate(asked["sampler"]), Pruner.model_validate(asked["pruner"])
    try:
        if sampler.kind == "optuna":
            check_sampler(sampler)
        if pruner.kind == "optuna":
            check_pruner(pruner)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
