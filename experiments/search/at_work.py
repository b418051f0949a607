"""What a search asks of a worker: end the runs that a pruner gives up, and propose trials as slots get free."""

import contextlib

from experiments.lock import LockedRun
from experiments.search.proposer import Proposer
from experiments.search.pruning import Judge
from experiments.store import StudyFolder
from nanogpt.config import UserError


class SearchAtWork:
    """A worker's part in its study's search; idle where the study does not search."""

    def __init__(self, study: StudyFolder) -> None:
        self._study, search = study, study.lock.search
        self._judge = Judge(study, search) if search is not None and search.pruner.kind != "none" else None
        self._proposes = search is not None and search.sampler.kind == "optuna"
        self._proposer: Proposer | None = None

    @property
    def may_grow(self) -> bool:
        """Whether trials may still be proposed that this worker does not know of."""
        return self._proposes and not self.is_broken and self._study.to_propose > 0

    @property
    def is_broken(self) -> bool:
        """Whether the proposing child has died; what it said last stands in the worker's log."""
        return self._proposer is not None and self._proposer.broken

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a run's process must not hold."""
        return self._proposer.descriptors if self._proposer is not None else ()

    @property
    def answers(self) -> list[int]:
        """Descriptors that become readable when there may be new trials."""
        return self._proposer.answers if self._proposer is not None else []

    def ends(self, run: LockedRun, generation: int) -> bool:
        """Whether a run at work is to end now, judged at the rungs that it has reached."""
        try:
            return self._judge is not None and self._judge.ends(run, generation)
        except (UserError, OSError):  # a damaged or full folder: the run goes on, and its end will say what is wrong
            return False

    def ended(self, run: LockedRun) -> None:
        """Write down what later runs compare with."""
        with contextlib.suppress(UserError, OSError):
            if self._judge is not None:
                self._judge.conclude(run)

    def has_proposed(self, free: int) -> bool:
        """Whether there may be trials that were not there at the last call; asks for some while slots are free."""
        if self._proposer is None and not self.may_grow:
            return False
        if self._proposer is None:
            self._proposer = Proposer(self._study.path)
        if free > 0 and self.may_grow:
            self._proposer.ask(free)
        return self._proposer.has_answered()

    def clear(self) -> None:
        """Nothing further is proposed."""
        self._proposes = False

    def close(self) -> None:
        if self._proposer is not None:
            self._proposer.close()
