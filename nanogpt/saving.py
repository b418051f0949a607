"""When a run saves itself: by time, at multiples of a step, at its best and at its end, and never too often.

All ranks of a team decide alike; its leader writes.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt import checkpoint
from nanogpt.config.runtime import Checkpoint
from nanogpt.progress import Progress
from nanogpt.stop import check_fence
from nanogpt.team import ALONE, Team

# A checkpoint is put off until this many times its own cost has passed, so that saving never rules the run.
COST_RATIO = 20


@dataclass
class Saver:
    """Writes an attempt's checkpoints by its policy. `state` packs what is to be saved, at the moment of saving;
    `branch_points` are steps that other runs start from: their checkpoints stay until a worker removes them."""

    folder: Path
    attempt: int
    policy: Checkpoint
    fence: Path | None
    progress: Progress
    state: Callable[[], dict[str, Any]]
    team: Team = ALONE
    branch_points: Collection[int] = ()
    saved_step: int = field(init=False)
    saved_at: float = field(init=False)
    cost: float = 0.0

    def __post_init__(self) -> None:
        self.saved_step, self.saved_at = self.progress.step, time.perf_counter()

    def after_step(self, last: bool, best: bool, due: bool) -> None:
        """Save if the policy wants a checkpoint at the step just done, or the time for one is `due`."""
        every = self.policy.every
        wanted = last or due or (every is not None and self.progress.step % every == 0)
        wanted = wanted or self.progress.step in self.branch_points
        if wanted or (best and self.policy.policy == "best"):
            self.save()

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint, by the leader's clock."""
        if not self.team.leads:
            return False
        waited = time.perf_counter() - self.saved_at
        return waited >= max(self.policy.interval_seconds, COST_RATIO * self.cost)

    def save(self) -> None:
        """Save now, unless this step is saved already or the policy is never.

        Raises SupersededError when another attempt owns the run by now.
        """
        if self.policy.policy == "never" or self.saved_step == self.progress.step:
            return
        check_fence(self.fence)
        started = time.perf_counter()
        state = self.state()  # shards are put together by all ranks
        if self.team.leads:
            self._write(state)
        self.saved_step, self.saved_at = self.progress.step, time.perf_counter()
        self.cost = self.saved_at - started

    def _write(self, state: dict[str, Any]) -> None:
        checkpoint.save(self.folder, self.attempt, self.progress.step, state)
        best = {self.progress.best_step} if self.policy.policy == "best" else set()
        also = {step for step in best if step is not None} | set(self.branch_points)
        checkpoint.prune(self.folder, self.attempt, checkpoint.KEPT, self.policy.every, also)
