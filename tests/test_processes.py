"""The guard of tests that start daemons: it ends them when the test run itself is killed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.processes import is_alive, with_variable

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
RUN = """
import os, subprocess, sys, time
from tests.processes import Guard
Guard(sys.argv[1])
name, _, value = sys.argv[1].partition("=")
subprocess.Popen(["sleep", "600"], env={**os.environ, name: value}, start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""


def test_daemons_end_with_a_test_run_that_is_killed(tmp_path):
    variable = f"NANOGPT_GUARDED={tmp_path}"
    with subprocess.Popen([sys.executable, "-c", RUN, variable], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            assert run.stdout.readline() == "up\n"
            # The kernel shows a new program's environment a moment after it lets the starter go on.
            started = within(30, lambda: with_variable(variable), "the daemon never appears")
        finally:
            run.kill()
    within(30, lambda: not with_variable(variable), "the daemon outlives the test run")
    assert not any(map(is_alive, started))


def within(seconds: float, wanted: Callable[[], T], otherwise: str) -> T:
    limit = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < limit, otherwise
        time.sleep(0.02)
    return found
