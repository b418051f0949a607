"""What follows a failed attempt: tried again, with what wait and micro-batch, or not, and why. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.marks import Retry
from experiments.outcomes import DISK_FULL, Ended
from experiments.supervise import Supervise
from nanogpt.config import why_cut_matters

# Preempted and lost attempts are free as long as the checkpoint advances; else so many more follow.
MOST_WITHOUT_ADVANCE = 5


@dataclass(frozen=True)
class Try:
    """One attempt of a run: how it ended, the furthest step it saved, and who asked for the next one."""

    ended: Ended
    saved_step: int | None
    retry: Retry | None = None


@dataclass(frozen=True)
class Verdict:
    """`retry` is None when the run is left alone, and `why` says why."""

    retry: Retry | None
    why: str


def judge(tries: Sequence[Try], supervise: Supervise, config: Mapping[str, Any]) -> Verdict:
    """Whether the run whose last try just failed is tried again by itself. `config` is the one of that attempt."""
    last = tries[-1].ended
    if last.kind == "corrupt":
        return Verdict(None, "a damaged file does not mend itself")
    if (last.error or {}).get("class") == "UserError":
        return Verdict(None, "a mistake in what was given does not mend itself")
    if last.kind == DISK_FULL:
        return Verdict(None, "a full disk does not empty itself; the next `run` tries it again")
    if supervise.on_error == "stop":
        return Verdict(None, "on_error is stop")
    if supervise.retries == 0:
        return Verdict(None, "retries is 0")
    if last.kind == "oom":
        return _with_less_memory(config)
    failed = [one for one in tries if one.ended.status == "failed"]
    # A time limit that was used to get further is no standstill; anything else that comes back would come a third time.
    if _same_before(failed) and not (last.kind == "timeout" and _advanced(tries)):
        return Verdict(None, "the same failure twice")
    spent = _since_a_person_asked(failed)
    if len(spent) > supervise.retries:
        return Verdict(None, f"retries is {supervise.retries}")
    wait = supervise.backoff * 2 ** (len(spent) - 1)
    return Verdict(Retry("policy", f"retry {len(spent)} of {supervise.retries}", wait), "within its retries")


def _since_a_person_asked(failed: Sequence[Try]) -> list[Try]:
    """The failures that use the budget: a person's wish makes it whole again, but for memory and disk."""
    asked = max((i for i, one in enumerate(failed) if one.retry is not None and one.retry.by == "person"), default=-1)
    return [one for one in failed[asked + 1 :] if one.ended.kind not in ("oom", DISK_FULL)]


def _same_before(failed: Sequence[Try]) -> bool:
    return any(one.ended.signature == failed[-1].ended.signature for one in failed[:-1])


def _advanced(tries: Sequence[Try]) -> bool:
    """Whether the last try saved a later step than all before it."""
    before = max((one.saved_step or 0 for one in tries[:-1]), default=0)
    return (tries[-1].saved_step or 0) > before


def _with_less_memory(config: Mapping[str, Any]) -> Verdict:
    """Half the micro-batch, twice the accumulation: the same mathematics, unless the cut is part of the run."""
    batch = config["train"]["batch_size"]
    nproc = config["runtime"].get("nproc", 1)
    share = batch // nproc
    micro = config["runtime"].get("micro_batch_size") or share
    reason = why_cut_matters(config["model"])
    if reason is not None:
        return Verdict(None, f"out of memory, and with {reason} another micro-batch would be another run")
    # Of each process's share: all of them take equally many micro-batches.
    half = next((size for size in range(micro // 2, 0, -1) if share % size == 0), None)
    if half is None:
        return Verdict(None, "out of memory with a micro-batch of 1")
    why = f"out of memory: micro-batch {micro} -> {half}"
    return Verdict(Retry("policy", why, micro_batch_size=half), why)


def keeps_dying(tries: Sequence[Try]) -> bool:
    """Whether a run was preempted or lost so often in a row without saving a step that it is the cause itself."""
    count = 0
    for index in range(len(tries), 0, -1):
        one = tries[index - 1]
        if one.ended.status == "failed" or one.ended.kind not in ("preempted", "lost") or _advanced(tries[:index]):
            break
        count += 1
    return count > MOST_WITHOUT_ADVANCE


def study_stop(failures: Mapping[str, tuple[str, str]], supervise: Supervise) -> tuple[str, list[str]] | None:
    """Why the study is stopped, and by which runs; None while it is not. `failures` are (kind, signature) by run."""
    if failures and supervise.on_error == "stop":
        return "on_error is stop", list(failures)
    by_signature: dict[str, list[str]] = {}
    for name, (kind, signature) in failures.items():
        if signature:
            # Every run meets a full disk at another file and another size: one cause all the same.
            by_signature.setdefault(kind if kind == DISK_FULL else signature, []).append(name)
    worst = max(by_signature.values(), key=len, default=[])
    if supervise.max_failures is not None and len(worst) >= supervise.max_failures:
        return f"{len(worst)} runs failed in the same way (max_failures is {supervise.max_failures})", worst
    return None
