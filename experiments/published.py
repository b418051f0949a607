"""One list of the runs that are published, so that a thousand workers need not each look into every finished folder.

A hint and no more: what a run's state is, its own folder says. Workers append ids to `workers/published.txt`; some may
be lost where appending is not atomic (NFS), which costs a look. A driver that finds an id in it without a record takes
the list away, and workers then look for themselves.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from experiments.lease import RECORD_NAME

NAME = Path("workers") / "published.txt"
_LINE = re.compile(r"[0-9a-f]{12}")


def note(study: Path, id: str) -> None:
    """Add a run. Never raises for a file that cannot be written: nothing depends on it."""
    with contextlib.suppress(OSError):
        (study / NAME).parent.mkdir(exist_ok=True)
        descriptor = os.open(study / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{id}\n".encode())
        finally:
            os.close(descriptor)


def noted(study: Path) -> set[str]:
    """The ids in the list; torn lines are left out."""
    try:
        lines = (study / NAME).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return {line for line in lines if _LINE.fullmatch(line)}


def discard_if_wrong(study: Path, folders: Mapping[str, Path]) -> None:
    """Take the list away when it names a run that has no record: it was forgotten, set aside, or removed by hand."""
    if any(id not in folders or not os.path.exists(f"{folders[id]}/{RECORD_NAME}") for id in noted(study)):
        (study / NAME).unlink(missing_ok=True)
