"""In which order a worker looks at the runs that are left, so that a thousand workers do not look at the same ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from experiments.lock import LockedRun

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between looks at one run that others hold, doubled each time


@dataclass
class Looks:
    """When each run may be looked at again. Times are of this process's own clock."""

    clock: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)
    _again: dict[str, tuple[float, float]] = field(default_factory=dict)

    def in_turn(self, runs: Sequence[LockedRun]) -> Iterator[LockedRun]:
        """Longest first. Past runs that others turn out to hold it goes in growing leaps of random length; what was
        leapt over comes afterwards.

        Workers that start together so find free runs after about log2(workers) looks each, not after `workers`.
        """
        index, held, passed_over = 0, 0, []
        while index < len(runs):
            run, index = runs[index], index + 1
            if not self.is_due(run):
                continue
            yield run
            held = 0 if self.is_due(run) else held + 1
            leap = self.random.randrange(2 ** min(held, 20)) if held else 0
            passed_over.append(range(index, min(index + leap, len(runs))))
            index += leap
        yield from (runs[i] for span in passed_over for i in span if self.is_due(runs[i]))

    def is_due(self, run: LockedRun) -> bool:
        return run.id not in self._again or self.clock() >= self._again[run.id][0]

    def held_by_others(self, run: LockedRun) -> None:
        """Look at it again later, and later still if it is held then."""
        _, wait = self._again.get(run.id, (0.0, FIRST_WAIT / 2))
        wait = min(2 * wait, LONGEST_WAIT)
        self._again[run.id] = (self.clock() + wait, wait)

    def forget(self, run: LockedRun) -> None:
        self._again.pop(run.id, None)
