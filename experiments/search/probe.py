"""Whether a search whose trials are proposed later can work at all: one valid proposal of every cell is resolved."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.runspec import RunSpec
from experiments.search.locking import FILTERED, Describe, refuse_rungs
from experiments.search.sampling import random_point
from experiments.search.search import Search
from nanogpt.config import UserError

if TYPE_CHECKING:
    from experiments.lock import LockedRun

PROBES = 50


def probed(search: Search, describe: Describe, place: str) -> Search:
    """The search with every `auto` settled as on this machine.

    Raises UserError when a cell has no valid proposal among the first random ones, when a rung of the pruner has no
    evaluation, and when the sampler's package is missing or refuses its settings.
    """
    from experiments.search.proposer import check_optuna

    check_optuna(search, place)
    specs = [_valid(search, cell, place) for cell in range(len(search.cells))]
    runs = describe([found[0] for found in specs])
    for run in runs:
        if isinstance(run, str):
            raise UserError(f"{place}: {run}")
    refuse_rungs(search, runs, place)
    return search.model_copy(update={"settled": _settled(specs[0][0], runs[0])})


def _valid(search: Search, cell: int, place: str) -> Sequence[RunSpec]:
    reasons = []
    for index in range(PROBES):
        try:
            return search.specs(cell, search.settings(random_point(search.sampler.seed, len(search.space), index)))
        except UserError as error:
            reasons.append(str(error).removeprefix(f"trial {cell}: "))
    word = " (the filters)" if all(FILTERED in reason for reason in reasons) else ""
    raise UserError(f"{place}: sweep.space: none of {PROBES} random settings is a valid run{word}; one: {reasons[0]}")


def _settled(spec: RunSpec, run: "LockedRun | str") -> dict[str, str]:
    """The settings left to the machine, as they are here: every later proposal, on any machine, has them too."""
    assert not isinstance(run, str), "refused before"
    asked = spec.config.model_dump(mode="json")
    return {
        f"{section}.{key}": run.config[section][key]
        for section, key in (("train", "precision"), ("runtime", "device"))
        if asked[section][key] == "auto"
    }
