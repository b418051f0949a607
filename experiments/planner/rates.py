"""Measured speed by shape: from runs that are finished, or from a calibration kept in a file of the results folder."""

import contextlib
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from experiments.devices import uses_gpu
from experiments.lock import LockedRun
from experiments.store import FINISHED, RunState, StudyFolder, published_record
from nanogpt.config import UserError, canonical_json, os_reason
from nanogpt.record import read_json, write_atomic

CACHE_NAME = "throughput.json"
SCHEMA_VERSION = 1
RECORDS_READ = 3  # per shape: more would only say the same


@dataclass(frozen=True)
class Setting:
    """Where and how runs train side by side: what a measured speed holds for besides the shape."""

    machine: str
    at_a_time: int
    threads: int


@dataclass(frozen=True)
class Rate:
    """What runs of one shape cost: tokens per second inside optimizer steps, and seconds of everything around them."""

    tokens_per_second: float
    evaluation_seconds: float
    setup_seconds: float
    checkpoint_seconds: float
    source: str = "calibration"

    def seconds(self, run: LockedRun, taken: int = 0) -> float:
        """Predicted wall time of a run, of which `taken` steps come from a trunk that another one trains."""
        interval = run.config["train"].get("eval_interval")
        evaluations = -(-run.steps // interval) - taken // interval if interval else 1
        around = self.setup_seconds + evaluations * self.evaluation_seconds + self._saves(run)
        return run.tokens * (1 - taken / run.steps) / self.tokens_per_second + around

    def _saves(self, run: LockedRun) -> float:
        """Checkpoints by time and by step, never more than a twentieth of the run; the last one is always written."""
        policy = run.config["runtime"]["checkpoint"]
        if policy["policy"] == "never":
            return 0.0
        training = run.tokens / self.tokens_per_second
        interval = max(policy["interval_seconds"], 20 * self.checkpoint_seconds, 1e-9)
        by_step = run.steps / policy["every"] if policy.get("every") else 0
        return self.checkpoint_seconds * (1 + int(training / interval) + by_step)


def shape_key(run: LockedRun) -> str:
    """Equal for runs that train at the same speed: all that decides it but the machine."""
    config, runtime = run.config, run.config["runtime"]
    parts = [config["model"], config["train"]["batch_size"], config["train"]["precision"], config["optimizer"]["kind"]]
    parts += [config["train"].get("eval_tokens"), config["data"]["corpus"]["kind"]]
    parts += [runtime.get(key) for key in ("device", "compile", "micro_batch_size", "attention", "threads")]
    return sha256(canonical_json(parts).encode()).hexdigest()[:16]


def by_shape(runs: Iterable[LockedRun]) -> dict[str, list[LockedRun]]:
    """The runs of each shape, small shapes first."""
    found: dict[str, list[LockedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.flops_per_token, run.label)):
        found.setdefault(shape_key(run), []).append(run)
    return found


def machine_name(runs: Sequence[LockedRun]) -> str:
    """What this machine trains these runs on: its GPUs where they use any, else its processor and cores."""
    if any(map(uses_gpu, runs)):
        return _gpu_name() or "a GPU of unknown kind"
    return f"{_cpu_name()}, {os.cpu_count()} cores"


@cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.partition(":")[0].strip() in ("model name", "Model"):
                return line.partition(":")[2].strip()
    return f"{os.uname().machine} processor"


@cache
def _gpu_name() -> str:
    """The first GPU's name, from the driver: CUDA is never touched here."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0].strip()
    return ""


class Rates:
    """The calibrations of a results root, in `throughput.json`, by shape, machine and runs at a time."""

    def __init__(self, root: Path) -> None:
        self.path = root / CACHE_NAME
        self._known = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        data = read_json(self.path) if self.path.exists() else {}
        known = data.get("rates") if data.get("schema_version") == SCHEMA_VERSION else None
        return known if isinstance(known, dict) else {}

    def get(self, shape: str, setting: Setting) -> Rate | None:
        entry = self._known.get(_entry_key(shape, setting))
        try:
            return Rate(**entry["rate"]) if entry is not None else None
        except (KeyError, TypeError):  # written by hand, or by another version: as if it were not there
            return None

    def keep(self, shape: str, setting: Setting, run: LockedRun, rate: Rate) -> None:
        """Add a measurement, and write the file at once: an interrupted calibration goes on where it was. What others
        have measured since the file was read stays."""
        model = {key: run.config["model"][key] for key in ("n_layer", "n_head", "n_embd", "block_size")}
        self._known = self._known | self._read()
        self._known[_entry_key(shape, setting)] = {"shape": model, **asdict(setting), "rate": asdict(rate)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = canonical_json({"schema_version": SCHEMA_VERSION, "rates": self._known})
            write_atomic(self.path, text.replace('},"', '},\n"') + "\n", durable=False)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {os_reason(error, self.path)}") from None


def _entry_key(shape: str, setting: Setting) -> str:
    return sha256(canonical_json([shape, *asdict(setting).values()]).encode()).hexdigest()[:16]


def finished_rates(study: StudyFolder, states: Mapping[str, RunState]) -> dict[str, Rate]:
    """The speed of the shapes of which runs are finished, as those runs had it, wherever they were trained."""
    found = {}
    for shape, runs in by_shape(run for run in study.runs() if states[run.id].status in FINISHED).items():
        rates = [rate for run in runs[-RECORDS_READ:] if (rate := _rate_of(study, run)) is not None]
        if rates:
            middle = {key: median(getattr(rate, key) for rate in rates) for key in _MEASURED}
            found[shape] = Rate(**middle, source=f"{len(runs)} finished run{'s' * (len(runs) > 1)}")
    return found


_MEASURED = ("tokens_per_second", "evaluation_seconds", "setup_seconds", "checkpoint_seconds")


def _rate_of(study: StudyFolder, run: LockedRun) -> Rate | None:
    """A record tells the time inside steps and in all; what is between them is put down to the evaluations."""
    try:
        record = published_record(study.folder(run))
    except (UserError, OSError):
        return None
    if record is None or record.status != "completed" or not record.tokens_per_second:
        return None
    if record.environment.get("resumed_from"):  # its clock may have stood still between attempts
        return None
    interval = run.config["train"].get("eval_interval")
    between = max(0.0, record.wall_seconds - record.tokens / record.tokens_per_second)
    return Rate(record.tokens_per_second, between / (-(-run.steps // interval) if interval else 1), 0.0, 0.0)
