"""A worker started ahead of its orders: it obeys them, goes home without them, and never outlives the driver."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.standby import Standby, standing_by
from tests.processes import is_alive

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def begun(monkeypatch) -> list[Standby]:
    """Every worker that is put on standby."""
    found = []
    before = Standby.__init__
    monkeypatch.setattr(Standby, "__init__", lambda self, folder: (before(self, folder), found.append(self))[0])
    return found


def test_without_orders_the_worker_is_gone_when_the_plan_fails(tmp_path, begun):
    with contextlib.suppress(RuntimeError), standing_by(tmp_path / "study"):
        assert begun[0]._process.poll() is None
        raise RuntimeError
    assert begun[0]._process.poll() is not None


@pytest.mark.parametrize(("wanted", "there"), [(False, False), (True, True)])
def test_no_worker_is_started_for_nothing(tmp_path, begun, wanted, there):
    if there:
        (tmp_path / "study").mkdir()
    with standing_by(tmp_path / "study", wanted) as standby:
        assert standby is None
    assert not begun


def test_orders_reach_the_worker_and_what_it_says_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOGPT_ENGINE", "no_such_engine")
    log = tmp_path / "log"
    recruit = Standby(tmp_path).order([str(tmp_path / "no study"), "--slots", "2"], log, {})
    assert recruit.process.wait(60) == 2
    os.close(recruit.life)
    assert "no study" in log.read_text()


def test_a_driver_that_dies_leaves_no_worker(tmp_path):
    code = f"from pathlib import Path; from experiments.standby import Standby; import os; " \
           f"print(Standby(Path({str(tmp_path)!r}))._process.pid, flush=True); os.kill(os.getpid(), 9)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(600):
        if not is_alive(pid):
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
