"""What a run leaves behind: the record (metrics.json), its history, and the one atomic act of publishing both."""

import contextlib
import json
import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanogpt.config.diskfull import naming
from nanogpt.config.errors import UserError

SCHEMA_VERSION = 1
PUBLISHED = ("completed", "diverged", "pruned")
Status = Literal["completed", "diverged", "pruned", "failed", "interrupted"]


class DamagedFile(UserError):
    """A file of ours that is not what was once written to it."""


class Record(BaseModel):
    """One run's outcome, flat: the schema of `metrics.json` and of every attempt's `outcome.json`.

    Losses are in nats per token on the scored targets; a loss that is not finite is stored as null. `tokens` are the
    tokens trained on, `flops` the realised training FLOPs (full attention, forward and backward), `mfu` null where the
    device's peak is unknown. `n_params_non_embedding` leaves out token and position embeddings and an untied head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Annotated[int, Field(strict=True, ge=1)] = SCHEMA_VERSION
    id: str
    status: Status
    val_loss: float | None = None
    val_loss_stderr: float | None = None
    val_entropy: float | None = None
    val_excess_loss: float | None = None
    val_bits_per_byte: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None
    diverged_at_step: int | None = None
    steps: int
    tokens: int
    epochs: float | None = None
    unique_tokens: int | None = None
    flops: float
    applications: float | None = None
    flops_per_token: int
    n_params: int
    n_params_non_embedding: int
    n_params_active: int
    n_params_applied: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None = None
    seed: int
    attempts: int
    config: dict[str, Any]
    factors: dict[str, Any] = {}
    parameters: dict[str, int]
    routing: dict[str, Any] | None = None
    mixture: dict[str, dict[str, Any]] | None = None
    environment: dict[str, Any]
    error: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _completed_has_a_loss(self) -> Self:
        if self.status == "completed" and self.val_loss is None:
            raise ValueError("a completed run has a val_loss")
        return self


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of this process alone, beside `path` and with its suffix, that takes its place when all went well."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str, durable: bool = True) -> None:
    """Replace a file's content as one act: a reader, or a kill at any moment, sees the old text or the new.

    `durable` waits until it is on the disk, so that it survives a power failure, too: milliseconds, which what can be
    written again from other files need not cost.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def to_json(value: Any) -> str:
    """Readable JSON. NaN and infinity are refused: no other language reads them."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_atomic(path, to_json(record.model_dump(mode="json")))


def read_record(path: Path) -> Record:
    """Read and validate a record. Raises UserError naming the file when it is damaged or from a newer version."""
    # In one pass where all is well, which is four times as fast; what is wrong is said by the steps below.
    with contextlib.suppress(OSError, ValidationError):
        record = Record.model_validate_json(path.read_bytes())
        if record.schema_version <= SCHEMA_VERSION:
            return record
    data = read_json(path)
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer version (schema {version}; this one reads up to {SCHEMA_VERSION})")
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "status"
        raise UserError(f"{path}: not a record of a run: {key}: {problem['msg']}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError naming the file when there is none in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise DamagedFile(f"{path}: damaged: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{path}: damaged or truncated (line {error.lineno}: {error.msg})") from None
    if not isinstance(data, dict):
        raise DamagedFile(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def read_published(folder: Path) -> Record:
    """A run's published record. Raises UserError when it is damaged, or is not a result."""
    record = read_record(folder / "metrics.json")
    if record.status not in PUBLISHED:
        raise UserError(
            f"{folder / 'metrics.json'}: status {record.status}: only a result is published as metrics.json"
        )
    return record


def read_history(path: Path, forgiving: bool = False) -> list[dict[str, Any]]:
    """The lines of a history.jsonl. A last line torn by a kill is left out; a missing file is an empty history.

    Raises UserError for any other damage, or leaves damaged lines out too when `forgiving`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace" if forgiving else "strict").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    history = []
    for number, text in enumerate(lines, start=1):
        line = _history_line(text)
        if line is not None:
            history.append(line)
        elif number < len(lines) and not forgiving:
            raise UserError(f"{path}:{number}: damaged history line")
    return history


def _history_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def launch_script(name: str) -> str:
    """The text of a run's launch.sh: trains the run it lies beside with nothing but its config.yaml."""
    root = Path(__file__).resolve().parent.parent
    return f"""#!/bin/sh
# Trains the run {name}, or goes on from its last checkpoint, without the orchestrator: sh launch.sh [--key=value ...]
PYTHONPATH={shlex.quote(str(root))}"${{PYTHONPATH:+:$PYTHONPATH}}"
export PYTHONPATH
exec "${{PYTHON:-{sys.executable}}}" -m nanogpt train "$(dirname "$0")" "$@"
"""


def attempt_folder(folder: Path, attempt: int) -> Path:
    """Where attempt number `attempt` of a run writes; no attempt ever writes into another's folder."""
    return folder / "attempts" / str(attempt)


def attempt_numbers(folder: Path) -> list[int]:
    """The attempts a run has had so far, in order."""
    root = folder / "attempts"
    return sorted(int(entry.name) for entry in root.iterdir() if entry.name.isdigit()) if root.is_dir() else []


def publish(folder: Path, attempt: int, factors: Mapping[str, Any] | None = None) -> bool:
    """Make an attempt's outcome the run's result, once. Returns False when the run already has one.

    The history is in place before metrics.json appears, and metrics.json appears by link(2), which never overwrites.
    """
    source, target = attempt_folder(folder, attempt), folder / "metrics.json"
    record = read_record(source / "outcome.json")
    assert record.status in PUBLISHED, f"a {record.status} attempt is no result"
    if target.exists():
        return False
    if factors is not None:
        record = record.model_copy(update={"factors": dict(factors)})
    history = source / "history.jsonl"
    if history.exists():
        write_atomic(folder / "history.jsonl", history.read_text(encoding="utf-8"), durable=False)
    temporary = folder / f".metrics.{uuid.uuid4().hex[:8]}.tmp"
    write_record(temporary, record)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
