"""How an attempt ended, by its outcome and its log rather than by its exit status alone: class, signature, record."""

import contextlib
import errno
import os
import re
import signal
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any, Literal

from experiments import engine
from experiments.lock import LockedRun
from nanogpt.config import UserError
from nanogpt.record import Record, attempt_folder, read_history, read_record

LOG_NAME = "log.txt"
OUTCOME_NAME = "outcome.json"
LOG_LINES = 20
TAIL_BYTES = 64 * 1024
DISK_FULL = "disk-full"
KINDS = ("error", "oom", "timeout", "crashed", "corrupt", DISK_FULL)
# Someone asked these runs to end. Other signals (a segmentation fault, an abort) come from the run itself.
ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|DefaultCPUAllocator: can't allocate|\bMemoryError\b|CUDA out of memory")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
LITTLE_BYTES = 64 * 1024  # with less than this, a child can say nothing any more
DAMAGED = re.compile(r"\b(damaged|truncated|corrupt)")
ADVICE = ("start it clean with --reset", "`forget` the run, and it starts anew")
_CGROUP = Path("/sys/fs/cgroup")
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?([eE][-+]?\d+)?")
_FRAME = re.compile(r'\s*File "([^"]+)", line \d+, in (\S+)')

Status = Literal["failed", "interrupted"]


@dataclass(frozen=True)
class Exit:
    """What the worker knows of a child's end beside its files.

    `status` is the engine's, or minus the signal that ended it. `reason` says who asked it to end: nobody (""), the
    driver or a person (`interrupted`), an engine that takes the machine away (`preempted`), the clock (`timeout`).
    """

    status: int
    reason: Literal["", "interrupted", "preempted", "timeout"] = ""
    out_of_memory: bool = False
    limit: float | None = None
    free_bytes: int | None = None  # where the run's folder lies

    @property
    def signal(self) -> int:
        """The signal that ended it, also as a shell or torchrun reports it; 0 for none."""
        return -self.status if self.status < 0 else self.status - 128 if 128 < self.status < 160 else 0


@dataclass(frozen=True)
class Ended:
    """An attempt without a result: `failed` with its class, or `interrupted` (preempted, lost or asked for)."""

    status: Status
    error: dict[str, Any] | None

    @property
    def kind(self) -> str:
        return str((self.error or {}).get("kind", ""))

    @property
    def signature(self) -> str:
        return str((self.error or {}).get("signature", ""))


def signature(error: dict[str, Any]) -> str:
    """Equal for equal causes: class, message without numbers and addresses, and the last frame of the traceback."""
    frames = [found for line in error.get("traceback_tail") or [] if (found := _FRAME.match(line))]
    frame = f"{PurePath(frames[-1][1]).name}:{frames[-1][2]}" if frames else ""
    message = _VARYING.sub("#", str(error.get("message", "")))
    # Files of a run lie in its own folder: their names tell two equal failures apart, and so do ids.
    message = re.sub(r"\S*/\S*", "PATH", message)
    return sha256(f"{error.get('class')}|{message}|{frame}".encode()).hexdigest()[:12]


def classify(ending: Exit, outcome: Record | None, log: list[str]) -> Ended:
    """The class of an attempt that left no result."""
    if ending.reason == "timeout":
        limit = f"{ending.limit:g} s" if ending.limit is not None else "its limit"
        return _ended("failed", "timeout", {"class": "Timeout", "message": f"ran longer than {limit}"}, log)
    if outcome is not None and outcome.status == "failed":
        error = dict(outcome.error or {"class": "Error", "message": "failed without saying why"})
        return _ended("failed", _kind(error, log), error, [])
    if ending.out_of_memory and ending.signal == signal.SIGKILL:
        error = {"class": "OutOfMemory", "message": "killed by the kernel: the machine ran out of memory"}
        return _ended("failed", "oom", error, log)
    if outcome is not None or ending.status == engine.INTERRUPTED or ending.signal in ENDED_FROM_OUTSIDE:
        return _taken_away(ending, outcome, log)
    error = _disk_full(ending, log) or _error(ending, log)
    return _ended("failed", _kind(error, log), {**error, "exit_status": ending.status}, log)


def _taken_away(ending: Exit, outcome: Record | None, log: list[str]) -> Ended:
    """Interrupted by someone's wish, preempted by an engine, or lost by a kill that nobody announced."""
    if ending.reason == "interrupted":
        return Ended("interrupted", None)
    saved = outcome is not None or ending.status == engine.INTERRUPTED
    kind = "preempted" if ending.reason == "preempted" or saved else "lost"
    name = signal.Signals(ending.signal).name if ending.signal else "a signal"
    error = {"class": kind.capitalize(), "message": f"ended by {name}", "exit_status": ending.status}
    return _ended("interrupted", kind, error, log)


def _ended(status: Status, kind: str, error: dict[str, Any], log: list[str]) -> Ended:
    told = {**error, "kind": kind, "signature": signature(error)}
    return Ended(status, {**told, "log_tail": log} if log else told)


def _disk_full(ending: Exit, log: list[str]) -> dict[str, Any] | None:
    """The error of a child that met a full disk, which takes no outcome, and perhaps not even a line of the log."""
    last = next((line for line in reversed(log) if line.strip()), "")
    if NO_SPACE.search(last):
        return {"class": "DiskFull", "message": last.removeprefix("nanogpt: ")}
    if ending.status == engine.FAILED and ending.free_bytes is not None and ending.free_bytes < LITTLE_BYTES:
        message = (
            f"it could write neither outcome nor log: {os.strerror(errno.ENOSPC)}; make room there, then run again"
        )
        return {"class": "DiskFull", "message": message}
    return None


def _kind(error: dict[str, Any], log: list[str]) -> str:
    if error.get("class") == "DiskFull" or NO_SPACE.search(str(error.get("message"))):
        return DISK_FULL
    if error.get("class") in ("OutOfMemoryError", "MemoryError") or OUT_OF_MEMORY.search(str(error.get("message"))):
        return "oom"
    if error.get("class") == "UserError" and DAMAGED.search(str(error.get("message"))):
        return "corrupt"
    if error.get("class") in ("Crashed", "NoRecord", "RankDied"):
        return "oom" if any(OUT_OF_MEMORY.search(line) for line in log) else "crashed"
    return "error"


def _error(ending: Exit, log: list[str]) -> dict[str, Any]:
    """What a child that wrote no outcome died of."""
    last = next((line for line in reversed(log) if line.strip()), "")
    if ending.signal:
        return {"class": "Crashed", "message": f"died of {_signal_name(ending.signal)}"}
    if ending.status == engine.COMPLETED:
        return {"class": "NoRecord", "message": "ended with exit status 0 and no record"}
    # What the engine tells a person who trains one run is not what helps with a study's.
    last = last.removeprefix("nanogpt: ").replace(*ADVICE)
    name = {engine.MISTAKE: "UserError", engine.FAILED: "Error"}.get(ending.status, "Crashed")
    return {"class": name, "message": last or f"exit status {ending.status} and no record"}


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def read_outcome(folder: Path, generation: int) -> Record | None:
    """What an attempt's child wrote about its end. A damaged outcome is as good as none: it broke while writing."""
    with contextlib.suppress(UserError, OSError):
        path = attempt_folder(folder, generation) / OUTCOME_NAME
        return read_record(path) if path.exists() else None
    return None


def written_off(run: LockedRun, home: Path, generation: int, ended: Ended) -> Record:
    """The outcome of a child that could not write one itself."""
    history: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        history = read_history(home / "history.jsonl", forgiving=True)
    steps = int(history[-1]["step"]) if history else 0
    done = steps / max(run.steps, 1)
    return Record(
        id=run.id, status=ended.status, steps=steps, tokens=round(run.tokens * done), flops=run.flops * done,
        flops_per_token=run.flops_per_token, n_params=run.n_params, n_params_non_embedding=run.n_params_non_embedding,
        n_params_active=run.n_params_active, n_params_applied=run.n_params_applied, wall_seconds=0.0, cpu_seconds=0.0,
        seed=run.config["seed"],
        attempts=generation, config=run.config, factors=run.factors, parameters=run.parameters, environment={},
        error=ended.error,
    )  # fmt: skip


def failure(error: dict[str, Any] | None) -> str:
    """An error in one line."""
    error = error or {}
    message = str(error.get("message", "")).strip().splitlines()
    return ": ".join(filter(None, [str(error.get("class", "")), message[0] if message else ""]))


def log_tail(log: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def oom_kills(root: Path = _CGROUP) -> int:
    """How many processes of our control group the kernel has killed for memory; 0 where nobody counts."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (root / group, root):
            events = folder / "memory.events"
            if events.exists():
                counts = dict(line.split() for line in events.read_text().splitlines())
                return int(counts.get("oom_kill", 0))
    return 0
