"""What a file system refused, in one line for people: the place, the reason, and for a full disk how full and where."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# A quota is a disk that is full for one user: on clusters the usual case.
FULL = (errno.ENOSPC, errno.EDQUOT)
_SI = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def os_problem(error: OSError, place: str | os.PathLike[str] = "") -> str:
    """`PATH: why`, with the free space and what to do when the disk is full. `place` is for errors without a path."""
    path = str(error.filename or place)
    return f"{path}: {os_reason(error, path)}" if path else os_reason(error)


def os_reason(error: OSError, place: str | os.PathLike[str] | None = None) -> str:
    """Why, without the path."""
    reason = str(error.strerror or error) or type(error).__name__
    if not is_disk_full(error):
        return reason
    return f"{reason}{f': {free_space(place)}' if place else ''}; make room there, then run again"


def free_space(place: str | os.PathLike[str]) -> str:
    """`468 kB of 3.1 MB are free on /scratch`, for the file system that a path is on or would be on."""
    nearest = nearest_existing(Path(place))
    mount = next(path for path in (nearest, *nearest.parents) if os.path.ismount(path) or path == path.parent)
    try:
        usage = shutil.disk_usage(nearest)
    except OSError:
        return f"{mount} tells no sizes"
    files = " and no further file" if _has_no_inodes(nearest) else ""
    return f"{_size(usage.free)} of {_size(usage.total)}{files} are free on {mount}"


def free_bytes(place: str | os.PathLike[str]) -> int | None:
    """The space that is left where a path is or would be; None where that cannot be told."""
    try:
        return shutil.disk_usage(nearest_existing(Path(place))).free
    except OSError:
        return None


def nearest_existing(path: Path) -> Path:
    """The path or the nearest folder above it that exists, absolute."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.exists()), Path(path.anchor))


def _has_no_inodes(path: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        found = os.statvfs(path)
        return bool(found.f_files) and not found.f_favail
    return False


def _size(count: float) -> str:
    factor, unit = next(((factor, unit) for factor, unit in _SI if count >= factor), (1, "B"))
    return f"{count / factor:.3g} {unit}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Writing to an open file fails without a word about which: give the error the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
