"""Publishing a run that a pruner has ended: its last attempt was interrupted, and that is its result."""

import contextlib
from pathlib import Path

from experiments.lock import LockedRun
from experiments.search.verdicts import is_pruned
from nanogpt.config import UserError
from nanogpt.record import Record, attempt_folder, publish, read_record, write_record


def publish_if_pruned(folder: Path, generation: int, run: LockedRun) -> bool:
    """Publish an interrupted attempt as pruned if a verdict has ended the run; says whether that was done.

    A kill between the verdict and here changes nothing: the next worker that claims the run publishes it.
    """
    if not is_pruned(folder):
        return False
    path = attempt_folder(folder, generation) / "outcome.json"
    outcome = _read(path)
    if outcome is None or outcome.status not in ("interrupted", "pruned"):
        return False
    write_record(path, outcome.model_copy(update={"status": "pruned", "error": None}))
    publish(folder, generation, run.factors)
    return True


def _read(path: Path) -> Record | None:
    with contextlib.suppress(UserError):
        return read_record(path)
    return None
