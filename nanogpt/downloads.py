"""Single files from the network: without one nobody waits for long, a switch forbids it, and bytes are checked."""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from nanogpt.record import replacing

ANSWER_SECONDS = 5.0  # for names to resolve and a host to answer
OFFLINE = "HF_HUB_OFFLINE"  # the switch that the tools around us have; urllib has none
_BLOCK = 2**20


def offline(*others: str) -> str | None:
    """The switch that forbids the network, as NAME=VALUE, if one does; `others` are switches for what is asked for."""
    for name in (OFFLINE, *others):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name}={os.environ[name]}"
    return None


def why(error: Exception) -> str:
    """In a few words why a file could not be had."""
    return str(getattr(error, "reason", error)) or type(error).__name__


def fetch(url: str, sha256: str | None = None) -> bytes:
    """The bytes at an address. Raises OSError where they cannot be had, or have another sha256."""
    with _opened(url) as response:
        data: bytes = response.read()
    if sha256 is not None:
        _check(url, hashlib.sha256(data), sha256)
    return data


def fetch_file(url: str, path: Path, sha256: str | None = None) -> None:
    """The bytes at an address in a file, which appears when it is whole. Raises OSError as `fetch` does."""
    with _opened(url) as response:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with replacing(path) as temporary, temporary.open("wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                found.update(block)
            if sha256 is not None:
                _check(url, found, sha256)


def _check(url: str, found: Any, sha256: str) -> None:
    """The page of a hotel's network comes with status 200, too."""
    if found.hexdigest() != sha256:
        raise OSError(f"what came from {url} is not the published file")


def _opened(url: str) -> Any:
    """An open answer. A thread asks: neither the resolution of names nor many dead addresses can be given a time."""
    import urllib.request  # with ssl and email behind it: too much for commands that ask no network

    if reason := offline():
        raise OSError(reason)
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(urllib.request.urlopen(url, timeout=ANSWER_SECONDS))
        except OSError as error:
            outcome.append(error)
        except Exception as error:  # http.client's own: a broken answer
            outcome.append(OSError(f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]
