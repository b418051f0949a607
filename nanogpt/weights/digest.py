"""sha256 of large files, computed once: kept on this machine for as long as a file is the same."""

import functools
import hashlib
import os
import time
from pathlib import Path

from nanogpt.config.errors import UserError
from nanogpt.config.identity import canonical_json
from nanogpt.data.binfiles import file_sha256
from nanogpt.record import read_json, to_json, write_atomic

SETTLED_SECONDS = 2  # a file changed later than this might change again within one tick of the file system's clock


def cache_folder() -> Path:
    """Where hashes are kept: $NANOGPT_CACHE_DIR, else a folder of the user's cache."""
    given = os.environ.get("NANOGPT_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nanogpt-scaling"


def known_sha256(path: Path) -> str:
    """sha256 of a file's bytes, from the cache where the file is still the one that was hashed.

    The same means: the same inode, size, time of change and time of last status change. The last one is set by the
    kernel at every write and cannot be set by hand, as `cp -p` or `touch` do with the first, so no change of the
    content is missed. A file that was just written is hashed again next time.
    """
    real = path.resolve()
    try:
        return _known(real, _stamp(real))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def combined(hashes: dict[str, str]) -> str:
    """One sha256 for weights in several files, by name: that of the file itself where there is one."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


@functools.lru_cache(maxsize=256)
def _known(path: Path, stamp: tuple[int, ...]) -> str:
    entry = cache_folder() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    try:
        found = read_json(entry)
        if found.get("stamp") == list(stamp) and isinstance(found.get("sha256"), str):
            return found["sha256"]
    except UserError:  # none yet, or damaged: it is written anew
        pass
    digest = file_sha256(path)
    if time.time_ns() - max(stamp[2:]) > SETTLED_SECONDS * 10**9 and _stamp(path) == stamp:
        _keep(entry, {"file": str(path), "stamp": list(stamp), "sha256": digest})
    return digest


def _keep(entry: Path, content: dict[str, object]) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(entry, to_json(content))
    except OSError:  # a read-only home costs the hash once more, nothing else
        pass
