"""`results --to csv | parquet | wandb`: the results where other tools read them. Our records stay what they are."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runfiles import grouped
from experiments.store import FINISHED, StudyFolder
from experiments.tracking import tracker_of
from nanogpt.config import UserError
from nanogpt.config.tracker import WandB
from nanogpt.record import replacing

if TYPE_CHECKING:
    import pandas as pd

SUCCESS, FAILURE = 0, 1


def export(study: StudyFolder, arguments: argparse.Namespace) -> int:
    """Write the table or the curves to a file, whole or not at all, or show every finished run to W&B."""
    if arguments.csv:
        raise UserError("command line: --csv prints the table, --to writes it; give one of them")
    if arguments.to == "wandb":
        if stray := [flag for flag in ("file", "curves") if getattr(arguments, flag)]:
            raise UserError(f"command line: --{stray[0]} belongs to --to csv or parquet")
        return _to_wandb(study, arguments.project, arguments.entity)
    if stray := [flag for flag in ("project", "entity") if getattr(arguments, flag)]:
        raise UserError(f"command line: --{stray[0]} belongs to --to wandb")
    return _to_file(study, arguments)


def _to_file(study: StudyFolder, arguments: argparse.Namespace) -> int:
    from experiments.results import load, load_curves

    table = load_curves(study) if arguments.curves else load(study).sort_values("val_loss", na_position="last")
    path: Path = arguments.file or study.path / f"{'curves' if arguments.curves else 'results'}.{arguments.to}"
    if not path.parent.is_dir():
        raise UserError(f"command line: --file: {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"command line: --file: {path} is a folder")
    with replacing(path) as temporary:
        if arguments.to == "csv":
            table.to_csv(temporary, index=False)
        else:
            _write_parquet(table, temporary)
    print(f"{path}: {len(table)} rows, {len(table.columns)} columns")
    return SUCCESS


def _write_parquet(table: "pd.DataFrame", path: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:  # pandas would name two packages to choose from
        raise UserError("results: --to parquet needs pyarrow: pip install 'nanogpt-scaling[data]'")
    table = table.copy()
    for name in table.columns:
        if table[name].dtype == object:
            table[name] = [_one_type(value) for value in table[name]] if _is_mixed(table[name]) else table[name]
    table.to_parquet(path, index=False)


def _is_mixed(column: "pd.Series[Any]") -> bool:
    """A column of Parquet has one type: a factor of numbers and words is written as words."""
    return len({type(value) for value in column if value is not None}) > 1 or any(
        isinstance(value, dict | list) for value in column
    )


def _one_type(value: Any) -> str | None:
    if value is None or value != value:  # a missing value
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _to_wandb(study: StudyFolder, project: str | None, entity: str | None) -> int:
    """Every finished run as a W&B run of its own id, with its curve and its numbers, in the study's group."""
    from nanogpt.trackers import check_installed, replay

    check_installed(WandB())
    states, later, failed, shown = study.states(), 0, 0, 0
    for run in study.runs():
        if states[run.id].status not in FINISHED:
            continue
        settings = _settings(tracker_of(run.config["runtime"]), study.lock.name, project, entity)
        try:
            tracker = replay(study.folder(run), settings)
        except Exception as error:
            print(f"{run.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            failed += 1
            continue
        if tracker.warning and not later:
            print(f"W&B: {tracker.warning}", file=sys.stderr)
        later += tracker.upload == "later"
        shown += 1
    waits = f"; {later} wait for `python -m experiments sync {study.path}`" if later else ""
    print(f"{study.lock.name}: {shown} finished runs shown to W&B{waits}" + (f"; {failed} failed" if failed else ""))
    return FAILURE if failed else SUCCESS


def _settings(tracker: Any, study: str, project: str | None, entity: str | None) -> WandB:
    """The run's own W&B settings where it has some, with what the command line says instead."""
    known = tracker.model_dump() if isinstance(tracker, WandB) else WandB().model_dump()
    asked = {key: value for key, value in {"project": project, "entity": entity}.items() if value is not None}
    return WandB.model_validate({**grouped(known, study), **asked})
