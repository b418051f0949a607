"""`exclusions.yaml` beside a study's lock: runs that people leave out of fits and figures, with reason and date."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lock import LockedRun
from experiments.selection import find_runs
from nanogpt.config import UserError, did_you_mean
from nanogpt.configfile import load_yaml

EXCLUSIONS_NAME = "exclusions.yaml"
_KEYS = ("run", "reason", "date")


@dataclass(frozen=True)
class Exclusion:
    """One run left out, and why."""

    run: str
    reason: str
    date: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.date})"


def read_exclusions(folder: Path, runs: Sequence[LockedRun]) -> dict[str, Exclusion]:
    """The runs left out, by id. Raises UserError with file and line for anything that is not as it should be."""
    path = folder / EXCLUSIONS_NAME
    if not path.exists():
        return {}
    found: dict[str, Exclusion] = {}
    for place, entry in _entries(path):
        exclusion = _exclusion(entry, place)
        try:
            (run,) = find_runs(runs, [exclusion.run])
        except UserError as error:
            raise UserError(f"{place}: run: {str(error).removeprefix('command line: ')}") from None
        if run.id in found:
            raise UserError(f"{place}: run: {run.id} is left out twice")
        found[run.id] = exclusion
    return found


def _entries(path: Path) -> list[tuple[str, Any]]:
    """The file is a list, or a mapping that holds one under `exclusions`; each entry with its place."""
    text = path.read_text(encoding="utf-8", errors="replace")
    is_list = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "").startswith(
        "-"
    )
    file = load_yaml(path, root="exclusions") if is_list else load_yaml(path)
    entries = file.data.get("exclusions", [])
    unknown = next((key for key in file.data if key != "exclusions"), None)
    if unknown is not None or not isinstance(entries, list):
        raise UserError(f"{path}:1: expected a list of {{run, reason, date}}")
    return [(file.line(("exclusions", str(index))), entry) for index, entry in enumerate(entries)]


def _exclusion(entry: Any, place: str) -> Exclusion:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: expected run, reason and date, got {entry!r}")
    for key in entry:
        if key not in _KEYS:
            raise UserError(f"{place}: {key}: no such key{did_you_mean(key, _KEYS)}")
    for key in _KEYS:
        if not str(entry.get(key) or "").strip():
            raise UserError(f"{place}: {key}: is missing; an exclusion says which run, why, and since when")
    return Exclusion(**{key: str(entry[key]).strip() for key in _KEYS})
