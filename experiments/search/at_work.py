"""What a search asks of a worker: end the runs that a pruner gives up, and propose trials as slots get free."""

import contextlib
import sys

from experiments.lock import LockedRun
from experiments.search.proposer import Proposer
from experiments.search.pruning import Judge
from experiments.search.verdicts import is_pruned
from experiments.store import StudyFolder
from nanogpt.config import UserError


class SearchAtWork:
    """A worker's part in its study's search; idle where the study does not search."""

    def __init__(self, study: StudyFolder) -> None:
        self._study, search = study, study.lock.search
        self._judge = Judge(study, search) if search is not None and search.pruner.kind != "none" else None
        # Optuna is a second's import that no worker needs: its pruners judge in the child that proposes.
        self._judges_elsewhere = search is not None and search.pruner.kind == "optuna"
        self._proposes = search is not None and search.sampler.kind == "optuna"
        self._proposer: Proposer | None = None

    @property
    def may_grow(self) -> bool:
        """Whether trials may still be proposed that this worker does not know of."""
        return self._proposes and not self.is_broken and self._study.to_propose > 0

    @property
    def is_broken(self) -> bool:
        """Whether the proposing child has died; what it said last stands in the worker's log."""
        return self._proposes and self._proposer is not None and self._proposer.broken

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
        if self._judge is None:
            return False
        try:
            if not self._judges_elsewhere:
                return self._judge.ends(run, generation)
            child = self._ask_judge()  # brought up before it is needed: it takes seconds to come
            if self._judge.is_due(run, generation):
                child.judge(run.id, generation)
            return is_pruned(self._study.folder(run))
        except (UserError, OSError):  # a damaged or full folder: the run goes on, and its end will say what is wrong
            return False

    def ended(self, run: LockedRun) -> None:
        """Write down what later runs compare with."""
        with contextlib.suppress(UserError, OSError):
            if self._judges_elsewhere:
                self._ask_judge().conclude(run.id)
            elif self._judge is not None:
                self._judge.conclude(run)

    def _ask_judge(self) -> Proposer:
        """The child that judges, brought up anew if it only judges and has died."""
        if self._proposer is None or (self._proposer.broken and not self._proposes):
            if self._proposer is not None:
                print("the child that judges trials has died; another one takes over", file=sys.stderr, flush=True)
                self._proposer.close()
            self._proposer = Proposer(self._study.path)
        return self._proposer

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
