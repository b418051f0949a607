"""Four runners on one folder of 200 runs: nothing is trained twice. Budget: 1 minute on two idle cores."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.store import StudyFolder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parent.parent.parent
CELLS, STEPS = 200, 5
STUDY = """question: Who trains what?
hypothesis: Each run is trained by one of them.
config:
  model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}
  train: {batch_size: 2, max_iters: %d, precision: fp32}
  runtime: {device: cpu}
sweep: {grid: {learning_rate: {logspace: {start: 1e-4, stop: 1e-1, num: %d}}}}
"""


def test_four_runners_never_train_a_run_twice(tmp_path):
    study = tmp_path / "cells.yaml"
    study.write_text(STUDY % (STEPS, CELLS))
    fake = ROOT / "tests" / "experiments"
    environment = os.environ | {"NANOGPT_ENGINE": "fake_engine", "PYTHONPATH": os.pathsep.join([str(ROOT), str(fake)])}
    line = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        str(study),
        "--out",
        str(tmp_path),
        "--no-report",
        "--jobs",
        "2",
    ]
    runners = [subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [runner.wait(400) for runner in runners] == [0, 0, 0, 0]
    folder = StudyFolder(tmp_path / "cells")
    assert Counter(state.status for state in folder.states().values()) == {"completed": CELLS}
    for run in folder.lock.runs:
        steps = (folder.folder(run) / "steps.log").read_text().splitlines()
        assert steps == [f"1 {step}" for step in range(1, STEPS + 1)], "trained by more than one attempt"
