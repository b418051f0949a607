"""Publishing a run that a pruner has ended: its last attempt was interrupted, and that is its result."""

from pathlib import Path

from experiments.lock import LockedRun
from experiments.outcomes import OUTCOME_NAME, Ended, read_outcome, written_off
from experiments.search.verdicts import is_pruned
from nanogpt.record import Record, attempt_folder, publish, read_history, write_record


def publish_if_pruned(folder: Path, generation: int, run: LockedRun) -> bool:
    """Publish an interrupted attempt as pruned if a verdict has ended the run; says whether that was done.

    A kill between the verdict and here changes nothing: the next worker that claims the run publishes it. An attempt
    that was killed before it could write its outcome has its last evaluation in its history.
    """
    home = attempt_folder(folder, generation)
    if not is_pruned(folder) or not (home / "history.jsonl").exists():
        return False
    outcome = read_outcome(folder, generation) or _from_history(run, home, generation)
    if outcome.status not in ("interrupted", "pruned"):
        return False
    write_record(home / OUTCOME_NAME, outcome.model_copy(update={"status": "pruned", "error": None}))
    publish(folder, generation, run.factors)
    return True


def _from_history(run: LockedRun, home: Path, generation: int) -> Record:
    lines = read_history(home / "history.jsonl", forgiving=True)
    losses = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
    record = written_off(run, home, generation, Ended("interrupted", None))
    return record.model_copy(update={"val_loss": losses[-1] if losses else None})
