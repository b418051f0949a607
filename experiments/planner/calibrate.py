"""Measuring how fast shapes train on this machine: children of the engine, as many side by side as runs will be."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import IO, Any

from experiments import engine
from experiments.devices import VISIBLE, GpuPool, uses_gpu, visible_gpus
from experiments.launchers.base import available_cores
from experiments.lock import LockedRun
from experiments.planner.rates import Rate, Rates, Setting
from nanogpt.config import UserError

SECONDS = 1.0  # of training per shape
CALM, BUSY = "calibration", "calibration by CPU time, as the machine was busy"
_MEASURED = ("tokens_per_second", "evaluation_seconds", "setup_seconds", "checkpoint_seconds")
Say = Callable[[str], None]


def calibrate(shapes: Mapping[str, LockedRun], setting: Setting, rates: Rates, say: Say) -> dict[str, str]:
    """Measure every shape that `rates` do not hold yet, and keep what comes out there.

    As many children as runs at a time train the same shape at the same moment: runs side by side share caches and
    memory, and one alone would promise too much. Returns the shapes that cannot be trained here, with the reason.
    """
    source = BUSY if _is_busy() else CALM
    wanted = {shape: run for shape, run in shapes.items() if _is_wanted(rates.get(shape, setting), source)}
    problems: dict[str, str] = {}
    if not wanted:
        return problems
    plural = "s" * (len(wanted) > 1)
    say(f"measuring {len(wanted)} shape{plural}, {setting.at_a_time} at a time, on {setting.machine}")
    with _children(setting, list(wanted.values())) as children:
        for shape, run in wanted.items():
            answers = _measure(children, run, setting.threads, source == BUSY)
            errors = [answer["error"] for answer in answers if "error" in answer]
            if errors:
                problems[shape] = errors[0]
                continue
            rate = Rate(**{key: mean(answer[key] for answer in answers) for key in _MEASURED}, source=source)
            rates.keep(shape, setting, run, rate)
    return problems


def _is_wanted(known: Rate | None, source: str) -> bool:
    """Not measured yet, or only while the machine was busy, which it is no more."""
    return known is None or (known.source == BUSY and source == CALM)


def _is_busy() -> bool:
    """Whether other work would slow down what is measured now."""
    return os.getloadavg()[0] > 0.75 * available_cores()


def _measure(
    children: "Sequence[subprocess.Popen[str]]", run: LockedRun, threads: int, by_cpu: bool
) -> list[dict[str, Any]]:
    runtime = {**run.config["runtime"], "branch_from": None}
    request = {"config": {**run.config, "runtime": runtime}, "seconds": SECONDS, "threads": threads, "by_cpu": by_cpu}
    for child in children:
        _pipe(child.stdin).write(json.dumps(request) + "\n")
        _pipe(child.stdin).flush()
    return [_heard(child) for child in children]


def _heard(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next line of a child. Raises UserError with the child's last words when there is none."""
    line = _pipe(child.stdout).readline()
    if line:
        return json.loads(line)
    last = _pipe(child.stderr).read().strip().rpartition("\n")[2]
    raise UserError(f"calibration: the child that measures has ended: {last or f'exit status {child.wait()}'}")


@contextmanager
def _children(setting: Setting, runs: Sequence[LockedRun]) -> "Iterator[list[subprocess.Popen[str]]]":
    """Engines that wait for shapes to measure, torch loaded, each on its share of the GPUs; ended in any case."""
    pool = GpuPool(visible_gpus() if any(map(uses_gpu, runs)) else [])
    command = [sys.executable, "-m", engine.engine_name(), "throughput"]
    environment = {**engine.child_environment(), **engine.CALM_THREADS, "OMP_NUM_THREADS": str(setting.threads)}
    children = []
    try:
        for index in range(setting.at_a_time):
            gpu = {VISIBLE: pool.gpus[index % len(pool.gpus)]} if pool.gpus else {}
            children.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    env={**os.environ, **environment, **gpu},
                )
            )  # fmt: skip
        for child in children:
            _heard(child)
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
