"""WSD trunks trained once: which run a worker starts from whose checkpoint, which one waits, and what is kept for it.

A run that shares its trunk with a longer one waits until that one has passed the step where its own cool-down begins.
That costs no time: at equal speed both would get there at the same moment. What it starts from is only an offer to the
engine, which trains from scratch where it cannot be taken; either way the losses are the same to the last bit.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.lock import LockedRun
from experiments.runfiles import current_config
from experiments.store import FINISHED, StudyFolder, state_of
from experiments.trunks import Trunk, shared_trunks
from nanogpt.config import canonical_json

# What may differ between two runs of one trunk: none of it changes a bit of the training or a line of the history.
FREE = ("checkpoint", "out_dir", "data_dir", "resume", "branch_from", "share_trunk", "tracker")
NEWEST = 2  # checkpoints of a finished run that stay in any case


@dataclass(frozen=True)
class Start:
    """What a worker tells the engine: the run to start from, and the steps at which others will start from this one."""

    trunk: Path | None = None
    branch_points: tuple[int, ...] = ()

    def arguments(self) -> list[str]:
        trunk = ["--branch_folder", str(self.trunk)] if self.trunk is not None else []
        return trunk + (["--branch_points", ",".join(map(str, self.branch_points))] if self.branch_points else [])


FROM_SCRATCH = Start()


@dataclass
class Branching:
    """The trunks of a study. Trials of a search share none: they come and end as a sampler decides."""

    study: StudyFolder

    def __post_init__(self) -> None:
        trunks = shared_trunks(self.study.runs()) if self.study.lock.search is None else []
        self._trunks = {run.id: trunk for trunk in trunks for run in trunk.runs}

    def may_start(self, run: LockedRun, left: Collection[str]) -> bool:
        """Whether no longer run of the trunk, among those `left` to train, is still to come by this run's cool-down."""
        trunk = self._trunks.get(run.id)
        if trunk is None or not trunk.stable_of(run):
            return True
        longer = any(each.steps > run.steps and each.id in left for each in trunk.runs)
        if not longer or self._steps(run):
            return True
        return any(trunk.stable_of(run) in self._steps(each) for each in trunk.runs)

    def start(self, run: LockedRun) -> Start:
        """From where the run starts, asked when it is claimed and its config.yaml is written."""
        trunk = self._trunks.get(run.id)
        if trunk is None:
            return FROM_SCRATCH
        shorter = [each for each in trunk.runs if each.steps < run.steps and not self._is_finished(each)]
        points = tuple(sorted({trunk.stable_of(each) for each in shorter} - {0}))
        return Start(None if self._steps(run) else self._source(trunk, run), points)

    def _source(self, trunk: Trunk, run: LockedRun) -> Path | None:
        """The run that got furthest on this run's trunk and has a checkpoint there."""
        best, source = 0, None
        for other in trunk.runs:
            limit = min(trunk.stable_of(run), trunk.stable_of(other))
            step = max((step for step in self._steps(other) if step <= limit), default=0)
            if other.id != run.id and step > best and self._is_alike(run, other):
                best, source = step, self.study.folder(other)
        return source

    def _is_alike(self, run: LockedRun, other: LockedRun) -> bool:
        """Whether both are trained with the same threads, cut of the batch and cadences: then bits are equal, too."""
        kept = []
        for each in (run, other):
            runtime = current_config(self.study.folder(each), each)["runtime"]
            kept.append(canonical_json({key: value for key, value in runtime.items() if key not in FREE}))
        return kept[0] == kept[1]

    def tidy(self, run: LockedRun) -> None:
        """Remove the checkpoints kept for the runs of a trunk, once all of these are finished."""
        trunk = self._trunks.get(run.id)
        if trunk is None or not all(map(self._is_finished, trunk.runs)):
            return
        points = set(trunk.stable)
        for each in trunk.runs:
            every = each.config["runtime"]["checkpoint"].get("every")
            steps = self._steps(each)
            for step in sorted(steps, reverse=True)[NEWEST:]:
                if step in points and not (every and step % every == 0):
                    _remove(steps[step])

    def _is_finished(self, run: LockedRun) -> bool:
        return state_of(self.study.folder(run)).status in FINISHED

    def _steps(self, run: LockedRun) -> dict[int, Path]:
        """The checkpoints of a run that were written whole, by their steps."""
        found = {}
        for digest in self.study.folder(run).glob("attempts/*/checkpoint-*.pt.sha256"):
            step = digest.name.partition("-")[2].partition(".")[0]
            if step.isdigit():
                found[int(step)] = digest.with_suffix("")
        return found


def _remove(path: Path) -> None:
    """The digest first: a kill between the two leaves a file that counts as torn."""
    with contextlib.suppress(OSError):
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
