"""What only reading a whole file tells, its sha256 and its largest token, remembered for files that did not change.

A file is taken to be unchanged while its path, size, inode, modification time and change time are. Whatever writes,
truncates, replaces or renames a file moves its change time, and no program can set that back (utime(2) moves it, too),
so a stale entry would need a clock set back. A file that was touched in the last seconds before it was read is not
remembered: a later change could fall on the same tick of the clock. What no time stamp shows, a bit rotten on the disk,
`prepare NAME --verify` finds by reading all of it.
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config.errors import UserError
from nanogpt.data.tokenfiles import TokenFile
from nanogpt.ranks import rank
from nanogpt.record import read_json, to_json, write_atomic

REMEMBERED_FROM = 2**24  # bytes: smaller files are read in less time than it takes to be clever
SETTLED_SECONDS = 2.0
SAY_FROM = 2**30  # bytes to be read that take so long that a person wonders
AT_ONCE = 2**24


@dataclass(frozen=True)
class Scan:
    """The sha256 of a file's bytes and the largest of its token ids."""

    sha256: str
    largest: int


def scan(files: Iterable[TokenFile], cache: Path) -> list[Scan]:
    """Each file's scan, those of large unchanged files from what lies in the folder `cache`.

    A cache that cannot be read or written costs time and nothing else.
    """
    files = list(files)
    folder = files[0].path.parent.resolve()
    memory = cache / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}.json"
    known = _recall(memory)
    states = {file.path.name: _state(file) for file in files}
    _announce(sum(states[name]["size"] for name in states if not _holds(known.get(name), states[name])), folder)
    found, learned = [], {}
    for file in files:
        name, state = file.path.name, states[file.path.name]
        entry = known.get(name)
        if entry is None or not _holds(entry, state):
            result = _read(file)
            if _is_settled(state) and _state(file) == state:
                learned[name] = {**state, **asdict(result)}
        else:
            result = Scan(entry["sha256"], entry["largest"])
        found.append(result)
    if learned:
        _remember(memory, folder, {**known, **learned})
    return found


def _state(file: TokenFile) -> dict[str, Any]:
    try:
        status = file.path.stat()
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror}") from None
    return {
        "size": status.st_size,
        "inode": status.st_ino,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
        "dtype": file.dtype,
        "offset": file.offset,
    }


def _holds(entry: Any, state: dict[str, Any]) -> bool:
    return isinstance(entry, dict) and all(entry.get(key) == value for key, value in state.items())


def _is_settled(state: dict[str, Any]) -> bool:
    age = time.time_ns() - max(state["modified_ns"], state["changed_ns"])
    return state["size"] >= REMEMBERED_FROM and age > SETTLED_SECONDS * 1e9


def _read(file: TokenFile) -> Scan:
    digest, largest = hashlib.sha256(), 0
    try:
        with file.path.open("rb") as source:
            digest.update(source.read(file.offset))
            while data := source.read(AT_ONCE):
                digest.update(data)
                tokens = np.frombuffer(data, file.dtype)
                if int(tokens.min()) < 0:
                    raise UserError(f"{file.path}: holds the token {tokens.min()}: ids are 0 and more")
                largest = max(largest, int(tokens.max()))
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror}") from None
    return Scan(digest.hexdigest(), largest)


def _recall(memory: Path) -> dict[str, Any]:
    with contextlib.suppress(UserError):
        files = read_json(memory).get("files")
        return files if isinstance(files, dict) else {}
    return {}


def _remember(memory: Path, folder: Path, files: dict[str, Any]) -> None:
    there = {name: entry for name, entry in files.items() if (folder / name).exists()}
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memory, to_json({"folder": str(folder), "files": there}), durable=False)


def _announce(size: int, folder: Path) -> None:
    if size >= SAY_FROM and rank() == 0:
        print(f"{folder}: reading {size / 1e9:,.1f} GB once, to know what is in it", file=sys.stderr)
