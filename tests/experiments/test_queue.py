"""Which runs a worker asks for: also those another host holds, because only the claim can tell a stale lease."""

import dataclasses
import os
import time

import pytest

from experiments import lease
from experiments.attempt import claim
from experiments.lease import Claimant
from experiments.lock import resolve, write_lock
from experiments.queue import Queue
from experiments.store import StudyFolder
from experiments.study import Study

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.mark.parametrize("ahead", [0, 3600], ids=["clocks agree", "theirs is an hour ahead"])
def test_a_lease_of_a_dead_host_is_taken_over_by_the_observers_own_clock(write_study, tmp_path, ahead):
    study = StudyFolder(tmp_path / "tiny")
    study.path.mkdir()
    write_lock(study.path, resolve(Study.load(write_study("{grid: {n_layer: [1]}}"))))
    (run,) = study.lock.runs
    elsewhere = Claimant(holder=dataclasses.replace(lease.this_process(), machine="another", pid=1))
    held = claim(study, run, elsewhere, threads=1)
    assert held is not None
    os.utime(held.lease.path, (time.time() + ahead,) * 2)
    here = Claimant(stale_seconds=0.2)
    queue = Queue(study, claimant=here)
    assert not queue.wants(run), "it may live: this is the first look"
    time.sleep(0.25)
    assert queue.wants(run)
    taken = claim(study, run, here, 1, after=queue.seen[run.id])
    assert taken is not None
    assert taken.lease.generation == 2


def test_a_run_that_fails_after_it_was_seen_running_is_not_taken_for_a_stale_one(write_study, tmp_path):
    study = StudyFolder(tmp_path / "tiny")
    study.path.mkdir()
    write_lock(study.path, resolve(Study.load(write_study("{grid: {n_layer: [1]}}"))))
    (run,) = study.lock.runs
    held = claim(study, run, Claimant(), threads=1)
    here = Claimant(stale_seconds=0.0)
    assert held is not None
    assert not here.finds_stale(held.lease.folder, 1)
    lease.release(held.lease)
    assert not here.finds_stale(held.lease.folder, 1), "released: its outcome says what follows, not the clock"
