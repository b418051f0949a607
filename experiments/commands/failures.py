"""What people are told about failed runs: the error, the log and its last lines, and whether they stop the study."""

from collections.abc import Mapping, Sequence

from experiments.lock import LockedRun
from experiments.outcomes import LOG_NAME, log_tail
from experiments.policy import study_stop
from experiments.store import FINISHED, TO_DO, RunState, StudyFolder, met_full_disk, unwritable
from experiments.supervise import check_supervise

SHOWN_LINES = 5
SHOWN_RUNS = 20


def failed_runs(study: StudyFolder, states: Mapping[str, RunState]) -> list[tuple[LockedRun, RunState]]:
    return [(run, states[run.id]) for run in study.runs() if states[run.id].status == "failed"]


def failures_text(study: StudyFolder, states: Mapping[str, RunState] | None = None) -> str:
    """Every failed run with its class, its error, its log and the end of that."""
    states = states or study.states()
    failed = failed_runs(study, states)
    lines = [f"{len(failed)} failed:"]
    for run, state in failed[:SHOWN_RUNS]:
        lines += [f"  {run.name}: {state.kind}: {state.detail}", *_log_lines(study, run, state)]
    if len(failed) > SHOWN_RUNS:
        lines.append(f"  ... and {len(failed) - SHOWN_RUNS} more; `status --json` names all")
    return "\n".join(lines)


def _log_lines(study: StudyFolder, run: LockedRun, state: RunState) -> Sequence[str]:
    if met_full_disk(state):
        return ()
    log = study.folder(run) / "attempts" / str(state.generation) / LOG_NAME
    if not log.exists():
        return ()
    return [f"    log: {log}", *(f"      | {line}" for line in log_tail(log, SHOWN_LINES))]


def left_alone_text(study: StudyFolder, states: Mapping[str, RunState]) -> str:
    """The runs that workers leave alone because their folders cannot be written; empty when there is none.

    Those folders cannot say so themselves. Where nothing can be written, nobody has tried: it is only looked at.
    """
    if unwritable(study.path):
        return ""
    homes = study.folders()
    tried = [run for run in study.runs() if states[run.id].status in TO_DO and run.id in homes]
    reasons = {run.name: reason for run in tried if (reason := unwritable(homes[run.id]))}
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:SHOWN_RUNS]]
    return "\n".join([f"{len(reasons)} left alone, since their folders cannot be written:", *lines]) if lines else ""


def stop_text(study: StudyFolder, states: Mapping[str, RunState] | None = None) -> str:
    """Why failures have stopped the study, and which; empty while they have not."""
    states = states or study.states()
    failures = {run.name: (state.kind, state.signature) for run, state in failed_runs(study, states)}
    stop = study_stop(failures, check_supervise(study.lock.supervise, str(study.path)))
    if stop is None or not any(state.status not in ("failed", *FINISHED) for state in states.values()):
        return ""
    return f"{stop[0]}: {', '.join(stop[1])}"
