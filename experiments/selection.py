"""Runs named on a command line: by id, the beginning of one, or label."""

from collections.abc import Sequence

from experiments.lock import LockedRun
from nanogpt.config import UserError, did_you_mean


def find_runs(runs: Sequence[LockedRun], words: Sequence[str]) -> list[LockedRun]:
    """The runs meant, each once. Raises UserError for a word that means none, or more than one."""
    return list({run.id: run for run in (_find(runs, word) for word in words)}.values())


def _find(runs: Sequence[LockedRun], word: str) -> LockedRun:
    exact = [run for run in runs if word in (run.id, run.label, run.name)]
    found = exact or [run for run in runs if run.id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(run.id for run in found[:5]) + (", ..." if len(found) > 5 else "")
        raise UserError(f"command line: {word}: could be any of {len(found)} runs: {several}")
    hint = did_you_mean(word, [*(run.id for run in runs), *(run.label for run in runs)])
    raise UserError(f"command line: {word}: no such run{hint if 'did you mean' in hint else ''}")
