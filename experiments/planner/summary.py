"""The head of a plan: how many runs, in which state, and how much there is to train. `run` shows it, too."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.lock import Drift, LockedRun
from experiments.planner.amounts import amount, runs_words
from experiments.store import FINISHED, TO_DO, RunState, StudyFolder, met_full_disk

KEPT_CHECKPOINTS = 2
SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class Plan:
    """The size of a study. FLOPs and tokens are of training; memory is of the runs that train at the same time."""

    name: str
    question: str
    folder: Path
    states: dict[str, int]
    flops: float
    flops_left: float
    tokens: int
    tokens_left: int
    disk_bytes: int
    memory_bytes: int
    jobs: int
    limits: str
    notes: list[str]
    to_propose: int = 0
    short_of_disk: int = 0  # failed for a full disk, so tried again by `run` itself

    @property
    def runs(self) -> int:
        return sum(self.states.values())

    @property
    def to_do(self) -> int:
        return sum(self.states.get(status, 0) for status in TO_DO) + self.short_of_disk + self.to_propose


def make_plan(study: StudyFolder, jobs: int, known: Mapping[str, RunState] | None = None) -> Plan:
    """Add up what is left of a study's runs, by their states: those that are `known`, or else read here."""
    lock, runs, states = study.lock, study.runs(), study.states() if known is None else known
    left = [run for run in runs if states[run.id].status not in FINISHED]
    largest = sorted((run.memory_bytes for run in left), reverse=True)
    return Plan(
        name=lock.name,
        question=lock.question,
        folder=study.path,
        states=dict(Counter(states[run.id].status for run in runs)),
        flops=sum(run.flops for run in runs),
        flops_left=sum(run.flops for run in left),
        tokens=sum(run.tokens for run in runs),
        tokens_left=sum(run.tokens for run in left),
        disk_bytes=sum(checkpoint_disk(run) for run in runs),
        memory_bytes=sum(largest[:jobs]),
        jobs=jobs,
        limits=lock.limits,
        notes=lock.notes,
        to_propose=study.to_propose,
        short_of_disk=sum(map(met_full_disk, states.values())),
    )


def checkpoint_disk(run: LockedRun) -> int:
    """Bytes of the checkpoints a finished run keeps."""
    policy = run.config["runtime"]["checkpoint"]
    extra = {"best": 1, "every_n": run.steps // (policy.get("every") or run.steps or 1)}.get(policy["policy"], 0)
    return 0 if policy["policy"] == "never" else run.checkpoint_bytes * (KEPT_CHECKPOINTS + extra)


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    counts = [f"{count} {status}" for status, count in sorted(plan.states.items())]
    states = ", ".join([*counts, *([f"{plan.to_propose} trials to propose"] if plan.to_propose else [])])
    lines = [
        f"{plan.name}: {plan.question}",
        f"  runs         {plan.runs} ({states})",
        *_costs(plan),
        f"  results      {plan.folder}",
    ]
    lines += [f"  limits       {plan.limits}"] if plan.limits else []
    return "\n".join([*lines, *(f"  note         {note}" for note in plan.notes)])


def _costs(plan: Plan) -> list[str]:
    """What a sampler has not proposed yet has no size: the sums are of the runs that are known, and say so."""
    if not plan.runs:
        return [f"  at a time    {runs_words(plan.jobs)}; what they cost is known once they are proposed"]
    known = f" (of the {runs_words(plan.runs)} proposed so far)" if plan.to_propose else ""
    return [
        f"  to train     {amount(plan.flops_left, 'FLOP')} of {amount(plan.flops, 'FLOP')}, "
        f"{amount(plan.tokens_left, 'tokens')} of {amount(plan.tokens, 'tokens')}{known}",
        f"  at a time    {runs_words(plan.jobs)}, about {amount(plan.memory_bytes, 'B')} of memory",
        f"  checkpoints  at most {amount(plan.disk_bytes, 'B')} of disk",
    ]


def drift_text(drifts: list[Drift]) -> str:
    """Which runs drifted, and what changed, key by key."""
    lines = []
    for drift in drifts[:SHOWN_DIFFERENCES]:
        lines.append(f"  {drift.new.label}: was {drift.old.id}, is now {drift.new.id}")
        for key, (then, now) in list(drift.differences().items())[:SHOWN_DIFFERENCES]:
            lines.append(f"    {key}: {then!r} -> {now!r}")
        if not drift.differences():
            lines.append("    the corpus's content changed")
    if len(drifts) > SHOWN_DIFFERENCES:
        lines.append(f"  ... and {len(drifts) - SHOWN_DIFFERENCES} more")
    return "\n".join(lines)
