"""Why a run is in its state, in words, and what `run` would do with it."""

from collections.abc import Iterable, Mapping

from experiments.lock import LockedRun
from experiments.store import FINISHED, TO_DO, RunState, met_full_disk

NAMED = 5  # runs of one reason that are named one by one

_WHY = {
    "missing": "it was never started",
    "queued": "a submitted worker will take it up",
    "running": "a worker holds its lease and shows that it lives",
    "completed": "it was trained to the end",
    "diverged": "a loss was not finite: a result",
    "pruned": "a search ended it early: a result",
    "interrupted": "it was stopped early",
    "preempted": "an engine took its machine away after a checkpoint",
    "lost": "its worker is gone without a word",
    "failed": "its last attempt ended with an error",
    "drifted": "its config has changed since, and it was trained anew",
}


def why(state: RunState) -> str:
    """Why a run is in this state: its class, the attempt that tells it, and what that attempt said."""
    words = _WHY[state.status]
    if state.status == "interrupted" and state.kind == "corrupt":
        words = "a file of it was damaged (corrupt)"
    elif state.status == "interrupted" and state.has_result:
        words = "it has finished, and its result is not published yet"
    elif state.status == "interrupted" and state.kind:
        words = f"an attempt failed ({state.kind})"
    if state.status == "failed":
        words += f" ({state.kind})"
    if state.generation:
        words += f", attempt {state.generation}"
    if state.status == "running":
        return f"{words}, on {state.detail}" if state.detail else words
    return f"{words}: {state.detail}" if state.detail else words


def next_step(state: RunState, stopped: bool = False) -> str:
    """What `run` would do with a run in this state."""
    if state.status in FINISHED:
        return "nothing, it is finished"
    if state.status == "running":
        return "nothing, it is under way"
    if met_full_disk(state):
        return f"start attempt {state.generation + 1}, if there is room on the disk by then"
    if state.status == "failed":
        return "nothing, it waits for `retry`"
    if state.status == "drifted":
        return "nothing, it is kept"
    if stopped:
        return "nothing, failures have stopped the study"
    if state.status == "queued":
        return "leave it to the submitted workers"
    if not state.generation:
        return "start it"
    if state.has_result:
        return f"publish the result of attempt {state.generation}"
    return f"start attempt {state.generation + 1} from the last good checkpoint, if there is one"


def starts_text(runs: Iterable[LockedRun], states: Mapping[str, RunState]) -> str:
    """Which runs will be started and why, grouped by reason; few of a kind are named."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        state = states[run.id]
        if state.status in TO_DO or met_full_disk(state):
            # The attempt and the message tell runs of one state apart: only the state's own words make a group.
            told = state.detail if state.kind and not met_full_disk(state) else ""
            brief = RunState(state.status, detail=told, kind=state.kind, has_result=state.has_result)
            groups.setdefault(f"{state.status}: {why(brief)}", []).append(run.label)
    lines = []
    for reason, labels in groups.items():
        named = f": {', '.join(labels)}" if len(labels) <= NAMED else ""
        lines.append(f"  start        {len(labels)} {reason}{named}")
    return "\n".join(lines)
