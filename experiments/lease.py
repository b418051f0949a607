"""Leases: which worker trains a run now. Files created by link(2), so any number of workers on any hosts agree.

`lease.<g>` is generation g of a run folder: g is the number of the attempt and the fencing token at once. The highest
generation owns the run. Lease files are never renamed or deleted, and a clock of one host is never compared with
another's: a lease is stale when its modification time has not changed for `stale_seconds` of the *observer's* monotonic
clock. Two short cuts: a holder that gave its lease back (`lease.<g>.released`) is followed at once, and so is a
holder that is a provably dead process of this very machine.

What this guarantees is exactly-once publication: under a pause longer than `stale_seconds` two attempts may overlap in
time, but they never write the same file, and the link of the record succeeds once.
"""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path

from nanogpt.record import attempt_folder

STALE_SECONDS = 60.0
BEATS = 12  # signs of life in that time
RECORD_NAME = "metrics.json"
_LEASE = re.compile(r"lease\.(\d+)")


class LeaseLost(Exception):
    """A later generation exists: someone else took the run over. Or the run's folder is gone, and the lease with it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. A pid alone is reused, and forked workers share everything but pid and start time."""

    host: str
    machine: str
    pid: int
    started: str
    token: str
    stale_seconds: float = STALE_SECONDS  # shown to people; each claimant goes by its own


@dataclass(frozen=True)
class Lease:
    """One generation of one run folder, held by the process that created it."""

    folder: Path
    generation: int

    @property
    def path(self) -> Path:
        return lease_path(self.folder, self.generation)

    @property
    def fence(self) -> Path:
        """The file whose existence says that this lease has been superseded."""
        return lease_path(self.folder, self.generation + 1)


def lease_path(folder: Path, generation: int) -> Path:
    return folder / f"lease.{generation}"


def top_generation(folder: Path) -> int:
    """The highest generation of a run folder; 0 when nobody ever claimed it."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    return highest(names)


def highest(names: Iterable[str]) -> int:
    """The highest generation among the names in a run folder.

    Each follows the one before it by one, since the file of the next is what fences an attempt off: a name beyond a gap
    (a copy, a slip of the hand) is none of ours.
    """
    there = {int(found[1]) for name in names if (found := _LEASE.fullmatch(name))}
    return next(generation for generation in count() if generation + 1 not in there)


@cache
def machine_id() -> str:
    """The kernel's boot and pid namespace: only where both agree does a pid mean the same process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, to tell a pid from its reuse; empty where unknown."""
    try:
        # The command name may hold spaces and parentheses: the numbers start after the last ')'.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), machine_id(), pid, process_start(pid), uuid.uuid4().hex)


def read_holder(path: Path) -> Holder | None:
    """Who wrote a lease; None when it is gone or not ours to read (a lease is linked whole, never torn)."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_local(holder: Holder) -> bool:
    return holder.machine == machine_id()


def is_alive(holder: Holder) -> bool:
    """Whether a holder of this machine still runs. A zombie is dead: it will never beat again."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    started = process_start(holder.pid)
    return started == holder.started and _process_state(holder.pid) not in ("Z", "X")


def _process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def link_text(text: str, target: Path) -> bool:
    """Make a file appear whole under its name, once. Returns False when the name exists; link(2) works on NFS too."""
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, target)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def released_path(folder: Path, generation: int) -> Path:
    return folder / f"lease.{generation}.released"


def is_released(folder: Path, generation: int) -> bool:
    return released_path(folder, generation).exists()


@dataclass
class Claimant:
    """One worker's view of the leases around it: who it is, and when it first saw each lease in its present state."""

    stale_seconds: float = STALE_SECONDS
    holder: Holder = field(default_factory=this_process)
    _seen: dict[Path, tuple[int, int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.holder = replace(self.holder, stale_seconds=self.stale_seconds)

    @property
    def beat_seconds(self) -> float:
        """Between two signs of life."""
        return self.stale_seconds / BEATS

    def claim(self, folder: Path, after: int | None = None) -> Lease | None:
        """Take the run if it is free, released, or held by someone dead or stale; None otherwise.

        With `after` only if the highest generation is still that one: else someone has had it since it was looked at.
        The folder must exist. A stale lease is only found by asking again after `stale_seconds`.
        """
        if _is_published(folder):
            return None
        top = top_generation(folder)
        if after is not None and top != after:
            return None
        if top and not self._may_follow(folder, top):
            return None
        lease = Lease(folder, top + 1)
        if not _create(lease, self.holder):
            return None
        # A person may have trained here by hand, which takes an attempt's number without a lease.
        while attempt_folder(folder, lease.generation).exists():
            lease = Lease(folder, lease.generation + 1)
            if not _create(lease, self.holder):
                return None
        # The record may have been published between the first look and the link: then there is nothing to train.
        return None if _is_published(folder) else lease

    def finds_stale(self, folder: Path, generation: int) -> bool:
        """Whether a lease that looks held is not: by this observer's clock alone, whatever the holder's clock says."""
        if is_released(folder, generation):
            return False
        return self._is_stale(lease_path(folder, generation), generation)

    def _may_follow(self, folder: Path, top: int) -> bool:
        if is_released(folder, top):
            return True
        path = lease_path(folder, top)
        holder = read_holder(path)
        if holder is not None and is_local(holder) and not is_alive(holder):
            return True
        return self._is_stale(path, top)

    def _is_stale(self, path: Path, top: int) -> bool:
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()
        generation, last_beat, since = self._seen.get(path.parent, (0, 0, now))
        if (generation, last_beat) != (top, beat):
            self._seen[path.parent] = (top, beat, now)
            return False
        return now - since >= self.stale_seconds


def _is_published(folder: Path) -> bool:
    return (folder / RECORD_NAME).exists()


def _create(lease: Lease, holder: Holder) -> bool:
    return link_text(json.dumps(asdict(holder)), lease.path)


def owns(lease: Lease) -> bool:
    return not lease.fence.exists()


def beat(lease: Lease) -> None:
    """Show that the holder lives. Raises LeaseLost when the run has been taken over, or its folder is gone."""
    if not owns(lease):
        raise LeaseLost(f"{lease.folder}: generation {lease.generation} was superseded")
    try:
        os.utime(lease.path)
    except FileNotFoundError:
        raise LeaseLost(f"{lease.folder}: was deleted or moved away") from None


def release(lease: Lease) -> None:
    """Give the run back, so that the next worker need not wait for the lease to become stale."""
    released_path(lease.folder, lease.generation).touch()
