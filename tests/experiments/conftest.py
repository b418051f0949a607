"""What the orchestrator's tests share: the fake engine, a base config, study files, and commands in child processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import engine
from experiments.lock import resolve, write_lock
from experiments.store import StudyFolder
from experiments.study import Study

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = """# A base for the orchestrator's tests.
model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}
train: {batch_size: 2, max_iters: 5, precision: fp32}
runtime: {device: cpu}
"""
Write = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


class _Subprocess(SimpleNamespace):
    """`subprocess`, but that the fake engine describes in this process: a child would need half a second to start."""

    def __init__(self) -> None:
        super().__init__(**vars(subprocess))
        self.run = self._run

    @staticmethod
    def _run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if command[:4] != [sys.executable, "-m", "fake_engine", "describe"]:
            return subprocess.run(command, **options)
        from fake_engine import describe_many

        return subprocess.CompletedProcess(command, 0, json.dumps(describe_many(json.loads(options["input"]))), "")


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything started from here trains with the fake engine, in this process and in children."""
    folder = str(Path(__file__).parent)
    monkeypatch.setenv("NANOGPT_ENGINE", "fake_engine")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), folder]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(engine, "subprocess", _Subprocess())


@pytest.fixture
def write_study(tmp_path: Path) -> Write:
    """Write a study whose sweep (and whatever else) is given as YAML, beside its base; returns its path."""

    def write(sweep: str = "{grid: {n_layer: [1, 2]}}", more: str = "", name: str = "tiny") -> Path:
        (tmp_path / "base.yaml").write_text(BASE)
        text = f"question: What?\nhypothesis: That.\nbase: base.yaml\nsweep: {sweep}\n{more}\n"
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def study(write_study: Write, tmp_path: Path) -> StudyFolder:
    """A locked study of four runs, nothing of it started: 1 is fine, 100 raises, 102 diverges, 103 is a mistake."""
    path = tmp_path / "results" / "tiny"
    path.mkdir(parents=True)
    more = "supervise: {retries: 0}"
    write_lock(path, resolve(Study.load(write_study("{seeds: [1, 100, 102, 103]}", more))))
    return StudyFolder(path)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m experiments ...` in a child process and return what it printed and its status."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        full = [sys.executable, "-m", "experiments", *map(str, arguments)]
        return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll, with a generous limit: a loaded machine is slow, and only a hang should fail."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
