"""Room on the disk: what a run needs of it, which runs still fit when it is full, and what a person is told then."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from experiments.lock import LockedRun
from experiments.planner.amounts import amount
from experiments.planner.summary import checkpoint_disk
from experiments.store import FINISHED, RunState, StudyFolder, met_full_disk
from nanogpt.config import free_bytes, free_space

MARGIN_BYTES = 2**20  # for records, histories and logs


def needs(run: LockedRun) -> int:
    """Bytes that a run may take: the checkpoints it keeps, and the one that it writes before the oldest goes."""
    kept = checkpoint_disk(run)
    return MARGIN_BYTES + (kept + run.checkpoint_bytes if kept else 0)


def without_room(runs: Iterable[LockedRun], folder: Path) -> list[LockedRun]:
    """The runs that would not fit, each taken by itself. A quota is not seen here; only the file system's own size."""
    free = free_bytes(folder)
    return [] if free is None else [run for run in runs if needs(run) > free]


def disk_text(study: StudyFolder, states: Mapping[str, RunState]) -> str:
    """That the disk is full, how full, and what it kept from being trained; empty while nothing points to that."""
    left = [run for run in study.runs() if states[run.id].status not in FINISHED]
    met = [run for run in left if met_full_disk(states[run.id])]
    free = free_bytes(study.path)
    if not left or not (met or (free is not None and free < MARGIN_BYTES)):
        return ""
    most = max(map(needs, left))
    waiting = f", {len(left) - len(met)} more to finish" if len(left) > len(met) else ""
    return (
        f"the disk is full, or was: {free_space(study.path)}; {_runs(len(met))} failed for it{waiting}, "
        f"and one of them needs up to {amount(most, 'B')}"
    )


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
