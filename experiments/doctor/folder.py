"""The results folder: what leases and records need of its file system, tried for real. Standard library only.

Leases and records are hard links, everything else that is replaced is renamed, a heartbeat is a modification time.
All of that is done once in a folder of its own, which is removed again.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.doctor.finding import Finding, gigabytes, ok, problem, warning

LITTLE_DISK, TOO_LITTLE_DISK = 5e9, 5e8
FEW_FILES = 100_000
SKEW_SECONDS = 2.0
# Those that only this machine sees. Whatever else there is may be shared.
OWN_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "apfs", "f2fs")
SHARE = "workers on other nodes need a shared folder; name one with --out"


def results(out: Path, shared: bool) -> Iterator[Finding]:
    """Everything about the folder that results will lie in. `shared`: workers on other machines will use it."""
    if "://" in str(out) or ":/" in str(out):
        yield problem("results", f"{out}: is an address", "results lie in a folder, which all nodes see under one path")
        return
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    kind = file_system(nearest)
    where = (
        f"{out.absolute()}" + ("" if nearest == out else f" (to be made in {nearest})") + (f", {kind}" if kind else "")
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "cannot be written" if nearest.is_dir() else f"{nearest} is not a folder"
        yield problem("results", f"{where}: {reason}", "choose another with --out")
        return
    yield _place(where, kind, shared)
    yield from _disk(nearest)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor-", dir=nearest))
    except OSError as error:
        yield problem(
            "results", f"{nearest}: cannot make a folder in it: {error.strerror}", "choose another with --out"
        )
        return
    try:
        for name, trial, why in TRIALS:
            yield _tried(name, trial, scratch, why)
        yield _clock(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _place(where: str, kind: str, shared: bool) -> Finding:
    if shared and kind in OWN_DISKS:
        return warning("results", f"{where}: looks like a disk of this machine alone", SHARE)
    if kind == "tmpfs":
        return warning("results", f"{where}: lies in memory", "it is empty after a restart; name another with --out")
    return ok("results", where)


def _disk(folder: Path) -> Iterator[Finding]:
    free, files = shutil.disk_usage(folder).free, os.statvfs(folder)
    found = f"{gigabytes(free)} free"
    if free < LITTLE_DISK:
        grade = problem if free < TOO_LITTLE_DISK else warning
        yield grade("disk", found, "`plan` shows what a study's checkpoints need")
    elif files.f_files and files.f_favail < FEW_FILES:
        yield warning("disk", f"{found}, but only {files.f_favail} more files", "a run makes about twelve")
    else:
        yield ok("disk", found)


def _write(scratch: Path) -> None:
    path = scratch / "written"
    with path.open("wb") as file:
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
    _demand(path.read_bytes() == b"x" * 4096, "what was written is not what is read")


def _link(scratch: Path) -> None:
    draft, lease = scratch / "draft", scratch / "lease"
    draft.write_text("a holder")
    os.link(draft, lease)
    _demand(lease.stat().st_nlink == 2, "a link does not count as one")
    with contextlib.suppress(FileExistsError):
        os.link(draft, lease)
        _demand(False, "the same link was made twice, so two workers could train one run")


def _rename(scratch: Path) -> None:
    old, new = scratch / "old", scratch / "new"
    old.write_text("old")
    new.write_text("new")
    os.replace(new, old)
    _demand(old.read_text() == "new" and not new.exists(), "a file does not replace another")


def _beat(scratch: Path) -> None:
    path = scratch / "beat"
    path.write_text("alive")
    os.utime(path, (1e9, 1e9))
    before = path.stat().st_mtime
    os.utime(path)
    _demand(path.stat().st_mtime > before, "a modification time does not move")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise OSError(0, otherwise)


TRIALS: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("write", _write, "choose a folder that can be written with --out"),
    ("link", _link, "leases and records are hard links: choose a file system that has them"),
    ("rename", _rename, "files are replaced by renaming: choose another file system"),
    ("heartbeat", _beat, "leases are kept by modification times: choose another file system"),
)


def _tried(name: str, trial: Callable[[Path], None], scratch: Path, advice: str) -> Finding:
    began = time.perf_counter()
    try:
        trial(scratch)
    except OSError as error:
        return problem(name, error.strerror or str(error), advice)
    return ok(name, f"works, {1000 * (time.perf_counter() - began):.1f} ms")


def _clock(scratch: Path) -> Finding:
    """The file system's clock against ours: on a network file system it is the server's."""
    path = scratch / "clock"
    before = time.time()
    path.write_text("now")
    after = time.time()
    stamp = path.stat().st_mtime
    # The kernel stamps with its last tick, so a local file may look some milliseconds older than `before`.
    skew = stamp - after if stamp > after else min(0.0, stamp - before + 0.02)
    if abs(skew) > SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        advice = "no lease depends on it, but `status` may call a running run lost: keep both in time by NTP"
        return warning("clock", f"the file system's is {abs(skew):.1f} s {side} this machine's", advice)
    return ok("clock", "the file system's agrees with this machine's")


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on, such as `nfs4`; empty where that is not known."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    target = str(path.resolve())
    for line in mounts:
        point, name = line.split()[1].replace("\\040", " "), line.split()[2]
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind
