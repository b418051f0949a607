"""The guard of tests that start daemons: it ends them when the test run itself is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import with_variable

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
    run = subprocess.Popen([sys.executable, "-c", RUN, variable], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline() == "up\n"
    (daemon,) = with_variable(variable)
    run.kill()
    run.wait()
    limit = time.monotonic() + 30
    while with_variable(variable):
        assert time.monotonic() < limit, "the daemon outlives the test run"
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{daemon}/cmdline") or not Path(f"/proc/{daemon}/cmdline").read_bytes()
