"""`trials/<k>.json`: what was proposed as trial k. Linked once, so that any number of runners agree on it."""

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.lock import LockedRun
from experiments.search.search import Search
from nanogpt.config import UserError
from nanogpt.record import read_json, write_atomic

SCHEMA_VERSION = 1
TRIALS = "trials"
_NAME = re.compile(r"(\d+)\.json")


class Trial(BaseModel):
    """A proposal: its settings and, unless it was refused, its runs (one per seed), resolved.

    `told` are the trials of the same search whose outcome the sampler knew; with them and `seed` it proposes the same
    again. `state` is what the sampler wants back with this trial. `search` is the hash of what was searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    trial: int
    search: str
    sampler: str
    seed: int
    settings: dict[str, Any]
    told: list[int] = []
    state: dict[str, Any] = {}
    refused: str | None = None
    repeats: int | None = None  # the trial that has the same runs
    runs: list[LockedRun] = []


def trial_path(folder: Path, number: int) -> Path:
    return folder / TRIALS / f"{number}.json"


def publish_trial(folder: Path, trial: Trial) -> Trial:
    """Make this proposal the trial of its number; returns the one that is: of two proposers, the first one's.

    link(2) fails when the name exists, on NFS too, and the file appears whole.
    """
    path = trial_path(folder, trial.trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_atomic(draft, trial.model_dump_json(indent=1) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        return read_trial(path)
    finally:
        draft.unlink(missing_ok=True)
    return trial


def read_trial(path: Path) -> Trial:
    """Raises UserError naming the file when it is damaged or from a newer version."""
    data = read_json(path)
    if isinstance(version := data.get("schema_version"), int) and version > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer version (schema {version}; this one reads up to {SCHEMA_VERSION})")
    try:
        return Trial.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(f"{path}: damaged: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


class TrialFiles:
    """The trials of a results folder, by number. A file never changes, so each is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[int, Trial] = {}

    def all(self) -> Mapping[int, Trial]:
        """Every trial there is by now, in the order of their numbers."""
        try:
            names = os.listdir(self.folder / TRIALS)
        except FileNotFoundError:
            return {}
        numbers = sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))
        for number in numbers:
            if number not in self._read:
                self._read[number] = read_trial(trial_path(self.folder, number))
        return {number: self._read[number] for number in numbers}

    def lacking(self, search: Search) -> list[int]:
        """How many trials each cell of a search lacks that is proposed one by one; 0 where all are known."""
        if search.sampler.kind != "optuna":
            return [0]
        trials = self.all()
        return search.lacking([number for number, trial in trials.items() if trial.runs], list(trials))

    def refuse_others(self, search: Search) -> None:
        """Raises UserError when the folder holds proposals of another search: mixed, they would answer neither."""
        others = [trial for trial in self.all().values() if trial.search != search.hash]
        if others:
            raise UserError(
                f"{self.folder / TRIALS}: {len(others)} proposals are of another search: the sampler, the space or the "
                "base has changed since; name the study differently, or move that folder away"
            )


def runs_of(trials: Mapping[int, Trial] | Sequence[Trial]) -> list[LockedRun]:
    """The runs of trials, in order."""
    listed = trials.values() if isinstance(trials, Mapping) else trials
    return [run for trial in listed for run in trial.runs]
