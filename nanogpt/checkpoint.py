"""Checkpoints: written whole or not at all, verified by sha256 before they are loaded, two kept while a run lives."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config import UserError, naming
from nanogpt.data.binfiles import file_sha256
from nanogpt.record import attempt_folder, attempt_numbers, write_atomic

FORMAT = 1
KEPT = 2
PROBE_BYTES = 2**20
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was once saved."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk: the attempt that wrote it, the optimizer steps behind it, and its file."""

    attempt: int
    step: int
    path: Path

    @property
    def digest(self) -> Path:
        return self.path.with_name(self.path.name + ".sha256")


def save(folder: Path, attempt: int, step: int, state: dict[str, Any]) -> CheckpointFile:
    """Write `checkpoint-<step>.pt` and its sha256 into the attempt's folder.

    The digest comes last and by rename, so a checkpoint without one is a torn write and is never loaded.
    """
    import torch

    path = attempt_folder(folder, attempt) / f"checkpoint-{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = file_sha256(temporary)
        temporary.replace(path)
    except RuntimeError:
        # torch's writer meets a full disk with an internal assertion: the file system says what it is.
        with naming(path):
            _ask_for_room(temporary)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    saved = CheckpointFile(attempt, step, path)
    write_atomic(saved.digest, digest + "\n")
    return saved


def _ask_for_room(path: Path) -> None:
    """Raises OSError when no more can be written to a file: no space, a quota, a limit on the size of files."""
    with path.open("ab") as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def listed(folder: Path) -> list[CheckpointFile]:
    """All checkpoints of a run that have a digest, the furthest step first; of equal steps the later attempt's."""
    found = [checkpoint for attempt in attempt_numbers(folder) for checkpoint in _of_attempt(folder, attempt)]
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt), reverse=True)


def _of_attempt(folder: Path, attempt: int) -> Iterator[CheckpointFile]:
    for path in attempt_folder(folder, attempt).iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.with_name(path.name + ".sha256").exists():
            yield CheckpointFile(attempt, int(match[1]), path)


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint and its content. `damaged` names those further ahead that could not be used, and why."""

    file: CheckpointFile
    state: dict[str, Any]
    damaged: tuple[str, ...] = ()


def load_latest(folder: Path, before_step: int | None = None) -> Loaded | None:
    """The furthest checkpoint that is whole, or None when the run has none.

    A damaged one is passed over, and named in the answer. Raises UserError when there are checkpoints and every one of
    them is damaged: a run never goes on from random weights.
    """
    candidates = [c for c in listed(folder) if before_step is None or c.step <= before_step]
    damaged: list[str] = []
    for candidate in candidates:
        try:
            return Loaded(candidate, _verified(candidate), tuple(damaged))
        except DamagedCheckpoint as problem:
            damaged.append(str(problem))
    if damaged:
        raise UserError(
            f"{folder}: no good checkpoint to resume from ({'; '.join(damaged)}); start it clean with --reset"
        )
    return None


def read_digest(path: Path) -> str:
    """The sha256 that was kept beside a checkpoint file. Raises UserError where there is none."""
    digest = path.with_name(path.name + ".sha256")
    try:
        return digest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no {digest.name} beside it that can be read") from None


def config_beside(file: Path) -> Path | None:
    """The config.yaml beside a checkpoint file, or of the run in whose attempts it lies."""
    above = file.resolve().parents
    in_a_run = [above[2]] if len(above) > 2 and above[1].name == "attempts" else []
    return next((path for folder in (file.parent, *in_a_run) if (path := folder / "config.yaml").is_file()), None)


def load_file(path: Path) -> dict[str, Any]:
    """The state in one checkpoint file, verified by the sha256 beside it. Raises UserError when it is not whole."""
    match = _NAME.fullmatch(path.name)
    checkpoint = CheckpointFile(0, int(match[1]) if match else 0, path)
    if not checkpoint.digest.is_file():
        raise UserError(
            f"{path}: no {checkpoint.digest.name} beside it: a torn write, or a copy without its digest; "
            "nothing is loaded unverified"
        )
    return _verified(checkpoint)


def _verified(checkpoint: CheckpointFile) -> dict[str, Any]:
    problem = _damage(checkpoint)
    if problem is None:
        try:
            return _read(checkpoint.path)
        except UserError:
            raise
        except Exception as error:  # a file of other content may raise nearly anything in the unpickler
            problem = f"its digest is right, but it is no checkpoint: {type(error).__name__}"
    raise DamagedCheckpoint(f"{checkpoint.path}: damaged checkpoint ({problem})")


def _damage(checkpoint: CheckpointFile) -> str | None:
    try:
        expected = checkpoint.digest.read_text(encoding="utf-8").strip()
        return None if file_sha256(checkpoint.path) == expected else "its sha256 does not match"
    except (OSError, UnicodeDecodeError) as error:
        return str(error)


def _read(path: Path) -> dict[str, Any]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')!r}; this version reads {FORMAT}")
    return state


def prune(folder: Path, attempt: int, keep: int, every: int | None = None, also: Collection[int] = ()) -> None:
    """Remove old checkpoints of a run and of its earlier attempts, keeping the furthest `keep`.

    `every` spares those at its multiples, `also` those at these steps (the best so far, the ends of trunks). Of an
    attempt other than `attempt`, nothing is removed before this attempt has `keep` checkpoints of its own.
    """
    mine = sorted(_of_attempt(folder, attempt), key=lambda checkpoint: checkpoint.step, reverse=True)
    older = [c for c in listed(folder) if c.attempt < attempt] if len(mine) >= keep else []
    for checkpoint in mine[keep:] + older:
        if (every and checkpoint.step % every == 0) or checkpoint.step in also:
            continue
        # The digest goes first: a kill between the two leaves a file that counts as torn, not as good.
        checkpoint.digest.unlink(missing_ok=True)
        checkpoint.path.unlink(missing_ok=True)
