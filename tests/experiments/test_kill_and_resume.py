"""The real engine under kill -9: a study is finished by a second call, and its table equals an uninterrupted one's.

Slow, about half a minute.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

from experiments.results import load
from tests.processes import family, is_alive

STUDY = """question: What is left after a kill?
hypothesis: Everything.
base: tiny_cpu.yaml
config:
  model: {n_layer: 1, n_embd: 16, block_size: 16}
  data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}
  train: {batch_size: 4, max_iters: 120, eval_interval: 40, eval_tokens: 1024}
  runtime: {threads: 1, checkpoint: {interval_seconds: 0}}
sweep: {grid: {n_head: [1, 2]}}
"""
EQUAL = [
    "id",
    "label",
    "status",
    "seed",
    "steps",
    "tokens",
    "flops",
    "n_params",
    "val_loss",
    "best_val_loss",
    "train_loss",
]


@pytest.fixture
def study(tmp_path) -> Path:
    path = tmp_path / "kill.yaml"
    path.write_text(STUDY)
    return path


def line(study: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments", "run", str(study), "--out", str(out), "--no-report", "--jobs", "1"]


@pytest.mark.slow  # budget: half a minute
def test_a_killed_study_ends_with_the_table_of_an_uninterrupted_one(study, tmp_path):
    subprocess.run(line(study, tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True, timeout=200)
    killed = tmp_path / "killed"
    process = subprocess.Popen(line(study, killed), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(killed.glob("kill/*/attempts/1/checkpoint-*.sha256")), 120)
    everyone = family(process.pid)
    assert len(everyone) == 3  # the runner, its worker, the run
    for pid in everyone:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_alive, everyone)))
    assert not list(killed.glob("kill/*/metrics.json"))
    subprocess.run(line(study, killed), cwd=ROOT, check=True, capture_output=True, timeout=200)
    assert len(list(killed.glob("kill/*/attempts/2"))) == 1
    resumed, whole = load(killed / "kill"), load(tmp_path / "whole" / "kill")
    assert resumed[EQUAL].equals(whole[EQUAL])
