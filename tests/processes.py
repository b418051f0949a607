"""What tests that kill processes ask of /proc, and a guard that outlives a test run which was itself killed.

Run as a program it is that guard: it waits for the end of its standard input, which comes however the test run ends,
then ends every process that has a given variable in its environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SWEEPS = 3  # of which the last ones must find nothing: a process may be started while we look


def family(pid: int) -> list[int]:
    """A process and everything it started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def is_alive(pid: int) -> bool:
    """A zombie that nobody waits for has no command line any more."""
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def with_variable(variable: str) -> list[int]:
    """The processes with `NAME=value` in their environment. A zombie has none, and needs no end."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


class Guard:
    """While this process lives nothing happens. When it is gone, even by SIGKILL, processes with `variable` end.

    Daemons leave their parents, so neither a process group nor a death signal reaches them; their environment does.
    """

    def __init__(self, variable: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, variable], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def end(self) -> None:
        """End them now, and wait until that is done."""
        assert self._process.stdin is not None, "asked for"
        self._process.stdin.close()
        self._process.wait()


def main(variable: str) -> None:
    sys.stdin.read()
    quiet = 0
    while quiet < SWEEPS:
        doomed = with_variable(variable)
        quiet = 0 if doomed else quiet + 1
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
