"""What tests that kill processes ask of /proc."""

import contextlib
from pathlib import Path


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
