"""What a search asks of a worker: end the runs that a pruner gives up, and propose trials as slots get free."""

from collections.abc import Sequence

from experiments.lock import LockedRun
from experiments.search.proposer import Proposer
from experiments.search.pruning import Judge
from experiments.store import StudyFolder


class SearchAtWork:
    """A worker's part in its study's search; idle where the study does not search."""

    def __init__(self, study: StudyFolder) -> None:
        self._study, search = study, study.lock.search
        self._judge = Judge(study, search) if search is not None and search.pruner.kind != "none" else None
        self._proposes = search is not None and search.sampler.kind == "optuna"
        self._proposer: Proposer | None = None
        self._known = {run.id for run in study.runs()}

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

    def ends(self, run: LockedRun, generation: int) -> bool:
        """Whether a run at work is to end now, judged at the rungs that it has reached."""
        return self._judge is not None and self._judge.ends(run, generation)

    def ended(self, run: LockedRun) -> None:
        """Write down what later runs compare with."""
        if self._judge is not None:
            self._judge.conclude(run)

    def new_runs(self, free: int) -> Sequence[LockedRun]:
        """Runs proposed since the last call, by anyone; asks for trials while there are free slots."""
        if not self._proposes or self.is_broken:
            return ()
        if self._proposer is None and not self.may_grow:
            return self._unknown()
        if self._proposer is None:
            self._proposer = Proposer(self._study.path)
        answered = self._proposer.has_answered()
        if free > 0:
            self._proposer.ask(free)
        if not (answered or free > 0):
            return ()
        return self._unknown()

    def _unknown(self) -> list[LockedRun]:
        new = [run for run in self._study.runs() if run.id not in self._known]
        self._known |= {run.id for run in new}
        return new

    def close(self) -> None:
        if self._proposer is not None:
            self._proposer.close()
