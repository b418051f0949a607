"""One attempt at a run: trains it, and leaves an outcome whatever happens."""

import contextlib
import math
import time
import traceback
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.describe import Description
from nanogpt.hardware import (
    choice_of,
    enable_fast_float32_matmul,
    environment,
    keep_freed_memory,
    peak_flops,
    peak_memory_bytes,
    torch_device,
)
from nanogpt.materials import Materials
from nanogpt.ranks import rank, ranks_started
from nanogpt.record import Record, Status, attempt_folder, attempt_numbers, read_history, write_record
from nanogpt.stop import StopRequest, SupersededError
from nanogpt.team import joined, leave_to_captain, local_device
from nanogpt.train import Result, Say, train

TRACEBACK_LINES = 30


def run_attempt(
    description: Description,
    materials: Materials,
    folder: Path,
    attempt: int,
    stop: StopRequest,
    fence: Path | None,
    say: Say,
    branch_points: Collection[int] = (),
) -> Record:
    """Train one attempt and write its outcome.json; returns the record.

    A UserError or a lost lease passes through and leaves no outcome, and so does the loss of other ranks where a
    captain writes why. Anything else that goes wrong in training is a failed outcome that carries the error.
    """
    config, started = description.config, time.perf_counter()
    device = local_device(torch_device(config.runtime.device, config.runtime.threads))
    keep_freed_memory()
    matmul = enable_fast_float32_matmul() if device.type == "cpu" else None
    surroundings = environment(str(device)) | {"micro_batch_size": config.micro_batch_size, "device": choice_of(config)}
    if matmul is not None:
        surroundings["float32_matmul"] = matmul.describe()
    outcome = attempt_folder(folder, attempt) / "outcome.json"
    try:
        with joined(device) as team:
            result = train(description, materials, device, folder, attempt, stop, fence, say, branch_points, team)
            peak = max(team.gather(peak_memory_bytes(str(device))))
            cpu_seconds = sum(team.gather(result.progress.cpu_seconds))
    except (UserError, SupersededError, KeyboardInterrupt, OSError):  # a full disk cannot take an outcome either
        raise
    except Exception as problem:
        leave_to_captain(problem)
        error, seconds = _explain(problem), time.perf_counter() - started
        record = failed_record(description, folder, attempt, error, seconds, surroundings)
        record = record.model_copy(update={"peak_memory_bytes": peak_memory_bytes(str(device))})
        # The first rank to fail knows why; the others only notice that it is gone.
        if ranks_started() == 1 or not outcome.exists():
            write_record(outcome, record)
        return record
    if result.resumed_from is not None:
        surroundings["resumed_from"] = result.resumed_from
    if result.branch is not None:
        surroundings["branched_from"] = result.branch
    if team.size > 1:
        surroundings |= {"nproc": team.size, "data_parallel": config.runtime.data_parallel}
    record = _record(description, folder, None, surroundings, status=result.status, **_figures(result, materials))
    speed, peak_speed = record.tokens_per_second, peak_flops(str(device))
    mfu = speed * record.flops / record.tokens / (peak_speed * team.size) if peak_speed and speed else None
    found = {"peak_memory_bytes": int(peak), "cpu_seconds": cpu_seconds, "mfu": mfu}
    record = record.model_copy(update=found)
    if team.leads:
        write_record(outcome, record)
    return record


def _explain(problem: Exception) -> dict[str, Any]:
    lines = traceback.format_exception(problem)
    tail = "".join(lines).splitlines()[-TRACEBACK_LINES:]
    where = f"rank {rank()}: " if ranks_started() > 1 else ""
    return {"class": type(problem).__name__, "message": f"{where}{problem}", "traceback_tail": tail}


def failed_record(
    description: Description,
    folder: Path,
    attempt: int,
    error: dict[str, Any],
    seconds: float = 0.0,
    surroundings: dict[str, Any] | None = None,
) -> Record:
    """The record of an attempt that broke off, as far as the last line of its history."""
    history: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):  # what cannot be read is no reason to leave the error unsaid
        history = read_history(attempt_folder(folder, attempt) / "history.jsonl", forgiving=True)
    last = history[-1] if history else {}
    reached = {
        "steps": last.get("step", 0),
        "tokens": last.get("tokens", 0),
        "flops": last.get("flops", 0.0),
        "train_loss": last.get("train_loss"),
        "wall_seconds": seconds,
        "cpu_seconds": 0.0,
    }
    return _record(description, folder, error, surroundings or {}, status="failed", **reached)


def _record(
    description: Description,
    folder: Path,
    error: dict[str, Any] | None,
    surroundings: dict[str, Any],
    **figures: Any,
) -> Record:
    config = description.config
    known: dict[str, Any] = {
        "id": description.id,
        "flops_per_token": description.flops_per_token,
        "n_params": description.n_params,
        "n_params_non_embedding": description.n_params_non_embedding,
        "n_params_active": description.n_params_active,
        "n_params_applied": description.n_params_applied,
        "parameters": description.parameters,
        "seed": config.seed,
        "attempts": len(attempt_numbers(folder)),
        "config": config.model_dump(mode="json"),
        "environment": surroundings,
        "error": error,
    }
    return Record(**known, **figures)


def _figures(result: Result, materials: Materials) -> dict[str, Any]:
    progress = result.progress
    # A diverged run has no final validation loss; what it reached before stands in best_val_loss.
    status: Status = result.status
    val_loss = progress.val_loss if status != "diverged" else None
    usage = materials.stream.usage(progress.step)
    return {
        "val_loss": val_loss,
        "val_loss_stderr": progress.val_loss_stderr if val_loss is not None else None,
        "val_entropy": result.val_entropy,
        "val_excess_loss": _difference(val_loss, result.val_entropy),
        "val_bits_per_byte": _bits(val_loss, result.val_bytes_per_token),
        "best_val_loss": progress.best_val_loss,
        "best_step": progress.best_step,
        "train_loss": progress.train_loss,
        "diverged_at_step": result.diverged_at_step,
        "routing": progress.routing,
        "steps": progress.step,
        "tokens": progress.tokens,
        "epochs": usage.epochs,
        "unique_tokens": usage.unique_tokens,
        "mixture": _by_part(materials, progress.step, progress.val_losses if val_loss is not None else None),
        "flops": float(progress.flops),
        "applications": progress.applications / progress.step if progress.step else None,
        "tokens_per_second": progress.tokens / progress.step_seconds if progress.step_seconds else None,
        "wall_seconds": progress.wall_seconds,
        "cpu_seconds": progress.cpu_seconds,
    }


def _by_part(materials: Materials, steps: int, losses: Mapping[str, float] | None) -> dict[str, dict[str, Any]] | None:
    """What a run read of each part of a mixture, and how it does on it; None for a single corpus."""
    eval_set, usages = materials.eval_set, materials.stream.usage_of_parts(steps)
    found: dict[str, dict[str, Any]] = {}
    for part, size in zip(eval_set.parts, eval_set.bytes_of_parts, strict=True):
        usage, loss = usages[part.name], (losses or {}).get(part.name)
        loss = loss if loss is not None and math.isfinite(loss) else None
        measured = {"val_loss": loss, "val_bits_per_byte": _bits(loss, size)}
        found[part.name] = {"share": part.share, **asdict(usage), **measured}
    return found or None


def _bits(loss: float | None, bytes_per_token: float | None) -> float | None:
    """A loss in nats per token as bits per byte of text."""
    return loss / math.log(2) / bytes_per_token if loss is not None and bytes_per_token else None


def _difference(loss: float | None, entropy: float | None) -> float | None:
    return None if loss is None or entropy is None else loss - entropy
