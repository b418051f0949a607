"""Leases: one holder at a time, found dead or stale, and exactly one publication under kills."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import lease
from experiments.lease import Claimant, LeaseLost

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def elsewhere() -> Claimant:
    """A worker on another machine: only its beats tell whether it lives."""
    return Claimant(holder=dataclasses.replace(lease.this_process(), machine="other", pid=1))


def test_the_first_claim_wins_and_the_second_waits(tmp_path):
    mine = Claimant().claim(tmp_path)
    assert mine is not None
    assert mine.generation == 1
    assert Claimant().claim(tmp_path) is None
    assert lease.owns(mine)


def test_a_released_run_is_taken_at_once_and_the_old_holder_is_fenced(tmp_path):
    first = Claimant().claim(tmp_path)
    lease.release(first)
    second = Claimant().claim(tmp_path)
    assert second.generation == 2
    assert first.fence == second.path
    assert not lease.owns(first)
    with pytest.raises(LeaseLost):
        lease.beat(first)


def test_a_finished_run_is_not_claimed(tmp_path):
    (tmp_path / "metrics.json").touch()
    assert Claimant().claim(tmp_path) is None
    assert lease.top_generation(tmp_path) == 0


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    code = (
        f"from pathlib import Path; from experiments.lease import Claimant; Claimant().claim(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert Claimant(stale_seconds=1e9).claim(tmp_path).generation == 2


def test_a_reused_pid_is_not_the_holder(tmp_path):
    ghost = dataclasses.replace(lease.this_process(), started="1")
    assert Claimant(holder=ghost).claim(tmp_path).generation == 1
    assert Claimant(stale_seconds=1e9).claim(tmp_path).generation == 2


def test_a_holder_elsewhere_is_followed_only_when_its_beats_stop(tmp_path, elsewhere, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(lease.time, "monotonic", lambda: now)
    held, observer = elsewhere.claim(tmp_path), Claimant(stale_seconds=10)
    assert observer.claim(tmp_path) is None
    now += 9
    os.utime(held.path, ns=(1, 1))  # a beat, by a clock that is decades behind ours
    assert observer.claim(tmp_path) is None
    now += 9
    assert observer.claim(tmp_path) is None
    now += 1
    assert observer.claim(tmp_path).generation == 2


def test_a_hand_made_attempt_keeps_its_number(tmp_path):
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    assert Claimant().claim(tmp_path).generation == 2


def test_a_claim_holds_only_for_what_was_looked_at(tmp_path):
    lease.release(Claimant().claim(tmp_path, after=0))
    assert Claimant().claim(tmp_path, after=0) is None  # someone had it in between, and perhaps it failed
    assert Claimant().claim(tmp_path, after=1).generation == 2


STRESS_WORKER = """
import json, os, random, sys, time
from pathlib import Path
from experiments import lease
from experiments.lease import Claimant, LeaseLost
root, claimant = Path(sys.argv[1]), Claimant(stale_seconds=30)
cells = sorted(root.iterdir())
random.shuffle(cells)
while left := [cell for cell in cells if not (cell / "metrics.json").exists()]:
    for cell in left:
        held = claimant.claim(cell)
        if held is None:
            continue
        time.sleep(random.random() * 0.02)
        draft = cell / f".draft.{held.generation}.{os.getpid()}"
        draft.write_text(json.dumps({"generation": held.generation}))
        if lease.owns(held):
            os.link(draft, cell / "metrics.json")
            with (cell / "published").open("a") as log:
                log.write("x")
        lease.release(held)
    time.sleep(0.01)
"""


def test_every_cell_is_published_exactly_once_under_kills(tmp_path):
    cells = [tmp_path / f"{number:03d}" for number in range(60)]
    for cell in cells:
        cell.mkdir()

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", STRESS_WORKER, str(tmp_path)], cwd=ROOT)

    workers, kills = [start() for _ in range(3)], 0
    while not all((cell / "metrics.json").exists() for cell in cells):
        time.sleep(random.random() * 0.15)
        victim = random.randrange(len(workers))
        done = sum((cell / "metrics.json").exists() for cell in cells)
        if kills < 8 and done > 5 * kills:
            workers[victim].send_signal(signal.SIGKILL)
            workers[victim].wait()
            workers[victim], kills = start(), kills + 1
    assert [worker.wait(60) for worker in workers] == [0] * len(workers)
    assert kills > 2
    for cell in cells:
        record = json.loads((cell / "metrics.json").read_text())
        assert record["generation"] <= lease.top_generation(cell)
        # A kill may fall between the link and the note of it, or within the note, never cause a second one.
        assert not (cell / "published").exists() or (cell / "published").read_text() in ("", "x")
