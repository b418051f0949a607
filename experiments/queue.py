"""What a worker still has to look at: the runs of a study that are not settled, the longest first."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from experiments import marks, published
from experiments.attempt import Settled
from experiments.branching import Branching
from experiments.lease import Claimant, lease_path
from experiments.lock import LockedRun
from experiments.shapes import Shapes
from experiments.spread import Looks
from experiments.store import FINISHED, RunState, StudyFolder, state_of

LOOKS_IN_VAIN = 50  # at runs that others hold or have finished, before the list of published runs is asked


@dataclass
class Queue:
    """The runs left, and the failures seen so far, by a run's name: what decides whether the study goes on."""

    study: StudyFolder
    retry_failed: bool = False
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    claimant: Claimant = field(default_factory=Claimant)

    def __post_init__(self) -> None:
        self.shapes, self._looks = Shapes(self.study), Looks()
        self.branching = Branching(self.study)
        self.seen: dict[str, int | None] = {}  # the generation that made us want a run
        self._left: dict[str, LockedRun] = {}
        self._known: set[str] = set()
        self._cancelled: dict[str, int] = {}
        self._due: dict[tuple[str, int], float] = {}
        self._at_work: set[str] = set()
        self._in_vain = 0
        done = published.noted(self.study.path) & set(self.study.folders())
        states = self.study.states(done)
        self._find_runs()
        self._drop_published(done)
        for run in list(self._left.values()):
            self._note_at_start(run, states.get(run.id, RunState("missing")))

    def _find_runs(self) -> None:
        """The lock's runs, and proposals that came since. Longest first: a long run started last would leave the
        other slots idle at the end."""
        new = [run for run in self.study.runs() if run.id not in self._known]
        if new:
            self._known |= {run.id for run in new}
            ordered = sorted([*self._left.values(), *new], key=lambda run: -run.flops)
            self._left = {run.id: run for run in self.shapes.leaders_first(ordered)}

    def _note_at_start(self, run: LockedRun, state: RunState) -> None:
        """Failures of old are tried again if that was asked for; a cancel of old stopped other workers, not this."""
        if state.status in FINISHED:
            del self._left[run.id]
        elif state.status == "failed" and self.retry_failed and state.generation:
            marks.ask_retry(self.study.folder(run), state.generation, marks.Retry())
        elif state.status == "failed":
            self.failures[run.name] = (state.kind, state.signature)
            self.drop(run)
        elif state.generation:
            self._cancelled[run.id] = state.generation

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to start or to wait for, trials proposed a moment ago included."""
        self._find_runs()
        return not self._left and not self._at_work

    @property
    def waiting(self) -> list[LockedRun]:
        """The runs left that this worker does not train."""
        return [run for run in self._left.values() if run.id not in self._at_work]

    def candidates(self) -> Iterator[LockedRun]:
        """The runs that may be looked at now, those first that are most likely to be free."""
        self.study.find_folders()
        self._find_runs()
        for run in self._looks.in_turn(self.waiting):
            if run.id in self._left:
                yield run
            if self._in_vain >= LOOKS_IN_VAIN:
                self._in_vain = 0
                self._drop_published(published.noted(self.study.path))

    def _drop_published(self, ids: set[str]) -> None:
        self._left = {id: run for id, run in self._left.items() if id not in ids or id in self._at_work}

    def wants(self, run: LockedRun) -> bool:
        """Whether the run may be claimed now. What needs no worker any more is dropped."""
        folder = self.study.folder(run)
        state = state_of(folder)
        self._in_vain += state.status in (*FINISHED, "running")
        if state.status in FINISHED:
            self._looks.held_by_others(run)  # others were here: what is free lies further on
            self.drop(run)
        elif state.status == "failed":
            self.failures[run.name] = (state.kind, state.signature)
            self.drop(run)
        elif self._was_cancelled(run, state):
            self.drop(run)
        elif state.status == "running" and not self.claimant.finds_stale(folder, state.generation):
            self._looks.held_by_others(run)
        else:
            has_lease = lease_path(folder, state.generation).exists()
            self.seen[run.id] = state.generation if has_lease or not state.generation else None
            waits = not self.branching.may_start(run, self._left.keys())
            return not waits and self._is_due(run, state) and self.shapes.may_start(run)
        return False

    def lost_race(self, run: LockedRun) -> None:
        """Another worker was faster; it will be a while before the run needs one again."""
        self._looks.held_by_others(run)

    def _was_cancelled(self, run: LockedRun, state: RunState) -> bool:
        if state.generation <= self._cancelled.get(run.id, 0):
            return False
        return bool(state.generation) and marks.cancel_path(self.study.folder(run), state.generation).exists()

    def _is_due(self, run: LockedRun, state: RunState) -> bool:
        """A retry waits by this worker's own clock, from when it first saw it."""
        retry = marks.read_retry(self.study.folder(run), state.generation) if state.kind else None
        if retry is None or not retry.wait:
            return True
        due = self._due.setdefault((run.id, state.generation), time.monotonic() + retry.wait)
        return time.monotonic() >= due

    def started(self, run: LockedRun) -> None:
        self._in_vain = 0
        self._at_work.add(run.id)
        self.failures.pop(run.name, None)

    def ended(self, run: LockedRun, settled: Settled) -> None:
        """What was taken away is taken up first; what is finished or has failed is done with."""
        self._at_work.discard(run.id)
        self._looks.forget(run)
        if settled.ending == "failed" and settled.ended is not None:
            self.failures[run.name] = (settled.ended.kind, settled.ended.signature)
        if settled.ending == "published":
            published.note(self.study.path, run.id)
            self.branching.tidy(run)
        if settled.ending in ("published", "failed"):
            self.drop(run)
        elif settled.ending in ("interrupted", "superseded", "deleted"):
            self._left = {run.id: run, **self._left}

    def set_aside(self, run: LockedRun) -> None:
        """Neither at work nor to be started: its end is still to be recorded."""
        self._at_work.discard(run.id)
        self.drop(run)

    def drop(self, run: LockedRun) -> None:
        self._left.pop(run.id, None)

    def clear(self) -> None:
        """Nothing further is started; what is at work ends by itself."""
        self._left = {id: run for id, run in self._left.items() if id in self._at_work}
