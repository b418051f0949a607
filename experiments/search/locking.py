"""The trials that are known beforehand: those of the random and Sobol samplers, refused proposals replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.runspec import RunSpec
from experiments.search.proposer import check_optuna
from experiments.search.rungs import rung_problem
from experiments.search.search import Refused, Search
from nanogpt.config import UserError

if TYPE_CHECKING:
    from experiments.lock import LockedRun

# What is described elsewhere: a run, or in one line why it is none.
Describe = Callable[[Sequence[RunSpec]], "list[LockedRun | str]"]
FILTERED = "sweep.filter drops it"


@dataclass
class Known:
    """The runs of a search that can be locked at once, the proposals that are none, and what is worth a note."""

    runs: list["LockedRun"] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Cell:
    """One search on its way to its number of trials."""

    index: int
    trials: int = 0
    proposed: int = 0
    # Ids of a trial's runs -> the trial; a small space comes back to the same settings.
    seen: dict[tuple[str, ...], int] = field(default_factory=dict)


def first_specs(search: Search, place: str) -> list[RunSpec]:
    """The runs of every proposal whose config is valid, before any of them is resolved; none of optuna's.

    Raises UserError when a space holds no valid one.
    """
    if search.sampler.kind == "optuna":
        return []
    specs: list[RunSpec] = []
    refused: list[Refused] = []
    points = search.points(search.trials)
    for trial in range(search.trials * len(search.cells)):
        settings = search.settings(points[trial // len(search.cells)])
        try:
            specs += search.specs(trial, settings)
        except UserError as error:
            refused.append(Refused(trial=trial, settings=settings, reason=str(error)))
    if not specs:
        raise UserError(_all_refused(place, refused))
    return specs


def known_trials(search: Search, describe: Describe, place: str) -> Known:
    """Every trial of the random or Sobol sampler, resolved. A refused proposal is replaced by the next of its cell.

    Raises UserError when a cell has no valid proposal, a rung of the pruner has no evaluation, or optuna is missing
    where the pruner is one of its own.
    """
    check_optuna(search, place)
    found = Known()
    cells = [_Cell(index) for index in range(len(search.cells))]
    while open_cells := [cell for cell in cells if cell.trials < search.trials]:
        open_cells = [cell for cell in open_cells if cell.proposed < search.most_proposals]
        if not open_cells:
            break
        _propose(search, open_cells, describe, found, place)
    for cell in cells:
        _judge(search, cell, found, place)
    if not found.runs:
        raise UserError(_all_refused(place, found.refused))
    found.runs.sort(key=lambda run: run.trial or 0)
    found.refused.sort(key=lambda refused: refused.trial)
    return found


def _propose(search: Search, cells: Sequence[_Cell], describe: Describe, found: Known, place: str) -> None:
    """As many proposals more of each cell as it lacks trials, all described at once: the child that does it is slow."""
    asked: list[tuple[_Cell, int, dict[str, Any], list[RunSpec]]] = []
    points = search.points(max(cell.proposed + search.trials - cell.trials for cell in cells))
    for cell in cells:
        for index in range(cell.proposed, min(cell.proposed + search.trials - cell.trials, len(points))):
            trial, settings = index * len(search.cells) + cell.index, search.settings(points[index])
            cell.proposed += 1
            try:
                asked.append((cell, trial, settings, search.specs(trial, settings)))
            except UserError as error:
                found.refused.append(Refused(trial=trial, settings=settings, reason=str(error)))
    described = iter(describe([spec for _, _, _, specs in asked for spec in specs]))
    for cell, trial, settings, specs in asked:
        runs = [next(described) for _ in specs]
        refuse_rungs(search, runs, place)
        reason = next((run for run in runs if isinstance(run, str)), None) or _repeat(cell, trial, runs)
        if reason is not None:
            found.refused.append(Refused(trial=trial, settings=settings, reason=f"trial {trial}: {reason}"))
            continue
        found.runs += [run for run in runs if not isinstance(run, str)]
        cell.trials += 1


def refuse_rungs(search: Search, runs: Sequence["LockedRun | str"], place: str) -> None:
    """Raises UserError when a rung of the pruner falls on no evaluation of a run: nothing could be judged there."""
    for run in runs:
        if not isinstance(run, str) and (problem := rung_problem(search.pruner, run)):
            raise UserError(f"{place}: {problem}")


def _repeat(cell: _Cell, trial: int, runs: Sequence["LockedRun | str"]) -> str | None:
    ids = tuple(run.id for run in runs if not isinstance(run, str))
    first = cell.seen.setdefault(ids, trial)
    return f"the same run as trial {first}" if first != trial else None


def _judge(search: Search, cell: _Cell, found: Known, place: str) -> None:
    """Fewer trials than asked for are worth a note; none at all is a mistake, unless the filters drop the cell."""
    refused = [each for each in found.refused if search.cell(each.trial) == cell.index]
    where = f"in the search at {_said(search.cells[cell.index])} " if search.cells[cell.index] else ""
    if not cell.trials:
        if not all(FILTERED in each.reason for each in refused) or len(search.cells) == 1:
            raise UserError(_all_refused(place, refused))
        found.notes.append(f"the filters drop the search at {_said(search.cells[cell.index])}")
    elif cell.trials < search.trials:
        found.notes.append(
            f"only {cell.trials} trial{'s' * (cell.trials != 1)} {where}instead of {search.trials}: "
            "the space holds no more"
        )
    elif refused:
        count = f"{len(refused)} proposal{'s' * (len(refused) != 1)}"
        found.notes.append(f"{count} {where}refused and replaced; the first: {refused[0].reason}")


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _all_refused(place: str, refused: Sequence[Refused]) -> str:
    return f"{place}: sweep.space: none of {len(refused)} proposals is a valid run; the first: {refused[0].reason}"
