"""What the tests of `prepare` share: small documents, the command, and what lies in the folder it made."""

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanogpt.__main__ import main
from nanogpt.data import shardwriter
from nanogpt.data.manifest import Split, read_manifest

EOT = 255  # the byte tokenizer's


def texts(count: int = 40, seed: int = 0) -> list[str]:
    """Documents of 5 to 500 characters, no two alike."""
    rng = random.Random(seed)
    words = ["wherefore", "art", "Ω", "thou?", "naïve\n", "7"]
    return [f"{n} " + " ".join(rng.choices(words, k=rng.randint(1, 80))) for n in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def run(name: str, source: Path, root: Path, *more: str) -> Path:
    """Prepare by bytes, and the folder it went to."""
    argv = ["prepare", name, "--from", str(source), "--data_dir", str(root), "--tokenizer", "byte", "--workers", "1"]
    assert main([*argv, *more]) == 0
    return root / f"{name}.byte"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids(folder: Path, split: Split) -> list[int]:
    manifest = read_manifest(folder)
    assert manifest is not None
    files = manifest.splits[split].shards
    parts = [np.fromfile(folder / shard.file, dtype=manifest.dtype) for shard in files]
    return np.concatenate(parts).tolist()


def documents_of(tokens: list[int]) -> list[str]:
    assert tokens[0] == EOT
    return [part.decode() for part in bytes(tokens).split(bytes([EOT]))[1:]]


class Killed(BaseException):
    """What no code of ours catches, as nothing catches kill -9."""


class Killer:
    """Raises Killed at the `at`-th change of a file, having done half of it where that is possible."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.count = 10**9, 0
        killer = self

        class FileIO(io.FileIO):
            def write(self, data: Any) -> int:
                if killer.tick():
                    super().write(data[: len(data) // 2])
                    raise Killed
                return super().write(data)

        monkeypatch.setattr(shardwriter, "io", SimpleNamespace(FileIO=FileIO, BytesIO=io.BytesIO))
        for name in ("replace", "unlink"):
            self._wrap(monkeypatch, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Path, name)

        def act(path: Path, *args: Any, **kwargs: Any) -> Any:
            if self.tick():
                raise Killed
            return real(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, act)

    def tick(self) -> bool:
        self.count += 1
        return self.count >= self.at
