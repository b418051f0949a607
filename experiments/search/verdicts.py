"""`rung.<i>.json` and `pruned.json` in a run's folder: how the run stood at each rung, written once."""

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nanogpt.config import UserError
from nanogpt.record import read_json, write_atomic

PRUNED_NAME = "pruned.json"


class Verdict(BaseModel):
    """The decision on a run at one rung, and everything that it was made from.

    `value` is the run's validation loss (nats per token) at `step`; null when it is not finite. `compared` are the
    trials that had reached the rung before, `threshold` the worst loss that goes on. `late` says that the run was over
    before it could be judged: its loss counts for the others. One of optuna's pruners was told that the trials
    `finished` were, has no threshold, and wants `state` back with this trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rung: int
    fraction: float
    step: int
    value: float | None
    compared_with: int
    compared: list[int]
    threshold: float | None
    goes_on: bool
    late: bool = False
    finished: list[int] = []
    state: dict[str, Any] = {}


def verdict_path(folder: Path, rung: int) -> Path:
    return folder / f"rung.{rung}.json"


def read_verdict(folder: Path, rung: int) -> Verdict | None:
    """None when the run has not been judged there. Raises UserError naming a damaged file."""
    path = verdict_path(folder, rung)
    if not path.exists():
        return None
    try:
        return Verdict.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(f"{path}: damaged: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def write_verdict(folder: Path, verdict: Verdict) -> Verdict:
    """Publish a verdict, once; returns the one that stands. One that ends the run is linked to pruned.json as well."""
    path = verdict_path(folder, verdict.rung)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_atomic(draft, verdict.model_dump_json(indent=1) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        standing = read_verdict(folder, verdict.rung)
        assert standing is not None, "a verdict is never removed"
        verdict = standing
    finally:
        draft.unlink(missing_ok=True)
    if not verdict.goes_on and not (folder / PRUNED_NAME).exists():
        with contextlib.suppress(FileExistsError):
            os.link(path, folder / PRUNED_NAME)
    return verdict


def is_pruned(folder: Path) -> bool:
    """Whether a verdict has ended this run."""
    return (folder / PRUNED_NAME).exists()
