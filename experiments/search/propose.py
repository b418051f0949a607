"""`python -m experiments propose`: publish the next trials of a study whose sampler learns from the earlier ones.

With `--serve` it is a worker's child, which knows optuna, and judges runs by optuna's pruners as well.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import engine
from experiments.lock import Describe, LockedRun, Resolver
from experiments.search.asktell import Told, ask
from experiments.search.outcomes import SETTLED, Outcome, outcome_of
from experiments.search.pruning import Judge, rule_of
from experiments.search.rungs import rung_problem
from experiments.search.search import Search
from experiments.search.trials import Trial, publish_trial
from experiments.store import StudyFolder
from nanogpt.config import UserError


@dataclass(frozen=True)
class Proposed:
    """How many trials were published, and whether the search has room for more."""

    published: int
    more: bool


class Proposals:
    """The proposer of one results folder; what has settled is read once."""

    def __init__(self, folder: Path, describe: Describe = engine.describe_here) -> None:
        self.study = StudyFolder(folder)
        search = self.study.lock.search
        if search is None or search.sampler.kind != "optuna":
            raise UserError(f"{folder}: its trials are all known; only a search with optuna is proposed one by one")
        self.search: Search = search
        self.study.trials.refuse_others(search)
        self._describe = describe
        self._settled: dict[int, Outcome] = {}

    def propose(self, waiting: int) -> Proposed:
        """Publish trials until `waiting` of them have a run that nobody trains, or the search has all its trials."""
        published = 0
        while True:
            trials = self.study.trials.all()
            outcomes = {number: self._outcome(trial) for number, trial in trials.items()}
            cell = self._next_cell()
            if cell is None:
                return Proposed(published, more=False)
            if sum(outcome.state == "waiting" for outcome in outcomes.values()) >= waiting:
                return Proposed(published, more=True)
            trial = self._proposal(cell, trials, outcomes)
            published += publish_trial(self.study.path, trial) is trial

    def _outcome(self, trial: Trial) -> Outcome:
        outcome = self._settled.get(trial.trial)
        if outcome is None:
            outcome = outcome_of(self.study, trial.runs, self.search.pruner)
            if outcome.state in SETTLED:
                self._settled[trial.trial] = outcome
        return outcome

    def _next_cell(self) -> int | None:
        """The cell that lacks the most trials; None when none lacks any."""
        lacking = self.study.trials.lacking(self.search)
        return lacking.index(max(lacking)) if any(lacking) else None

    def _proposal(self, cell: int, trials: Mapping[int, Trial], outcomes: Mapping[int, Outcome]) -> Trial:
        """What the sampler proposes next for a cell, resolved, or refused with the reason."""
        earlier = [trial for trial in trials.values() if self.search.cell(trial.trial) == cell]
        told = [trial.trial for trial in earlier if outcomes[trial.trial].state in (*SETTLED, "failed")]
        asked = ask(self.search, cell, told_of(earlier, outcomes))
        proposal = Trial(
            trial=len(earlier) * len(self.search.cells) + cell,
            search=self.search.hash,
            sampler=self.search.sampler.optuna.get("sampler", "tpe"),
            seed=self.search.sampler.seed,
            settings=asked.settings,
            told=told,
            state=asked.state,
        )
        return self._resolved(proposal, earlier)

    def _resolved(self, proposal: Trial, earlier: Sequence[Trial]) -> Trial:
        try:
            specs = self.search.specs(proposal.trial, proposal.settings)
            runs = Resolver(describe=self._describe).runs(specs)
        except UserError as error:
            return proposal.model_copy(update={"refused": str(error)})
        if reason := _refusal(self.search, runs):
            return proposal.model_copy(update={"refused": f"trial {proposal.trial}: {reason}"})
        found = [run for run in runs if not isinstance(run, str)]
        same = [trial.trial for trial in earlier if [run.id for run in trial.runs] == [run.id for run in found]]
        if same:
            reason = f"trial {proposal.trial}: the same run as trial {same[0]}"
            return proposal.model_copy(update={"refused": reason, "repeats": same[0]})
        return proposal.model_copy(update={"runs": found})


def _refusal(search: Search, runs: Sequence[LockedRun | str]) -> str | None:
    problems = (run if isinstance(run, str) else rung_problem(search.pruner, run) for run in runs)
    return next((problem for problem in problems if problem), None)


def told_of(trials: Sequence[Trial], outcomes: Mapping[int, Outcome]) -> list[Told]:
    """What the sampler is told of each trial; one that repeats another is told with that one's loss."""
    return [_told(trial, outcomes[trial.trial if trial.repeats is None else trial.repeats]) for trial in trials]


def _told(trial: Trial, outcome: Outcome) -> Told:
    # The last loss of a diverged run says nothing of how bad it is: without one it counts as the worst known.
    value = outcome.value if outcome.state in ("completed", "pruned") else None
    return Told(
        settings=trial.settings,
        value=value,
        is_pruned=outcome.state == "pruned",
        is_open=outcome.state in ("open", "waiting"),
        at_rungs=outcome.at_rungs,
        state=trial.state,
    )


class Service:
    """Answers a worker, line by line: `propose N`, `judge RUN GENERATION`, `conclude RUN`. Only the first is answered
    by a line; verdicts are files."""

    def __init__(self, folder: Path) -> None:
        self._study = StudyFolder(folder)
        self._proposals: Proposals | None = None
        search = self._study.lock.search
        judges = search is not None and search.pruner.kind == "optuna"
        self._judge = Judge(self._study, search, rule_of(self._study, search)) if search and judges else None

    def answer(self, line: str) -> None:
        """Raises UserError when nothing can be proposed; a verdict that cannot be made is left out."""
        verb, *words = line.split()
        if verb == "propose":
            self._proposals = self._proposals or Proposals(self._study.path)
            done = self._proposals.propose(int(words[0]))
            print(json.dumps({"published": done.published, "more": done.more}), flush=True)
        elif self._judge is not None:
            run = next(run for run in self._study.runs() if run.id == words[0])
            with contextlib.suppress(UserError, OSError):  # a damaged or full folder: the run goes on
                self._judge.ends(run, int(words[1])) if verb == "judge" else self._judge.conclude(run)


def main(folder: Path, waiting: int, serve: bool) -> int:
    """Propose once, or with `serve` answer every line of stdin."""
    service = Service(folder)
    for line in sys.stdin if serve else [f"propose {waiting}"]:
        service.answer(line)
    return 0
