"""What an evaluation leaves: one JSON file per task, beside the run it was made of or where a person says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.config.diskfull import os_reason
from nanogpt.evaluation.multiple_choice import Answers, Question
from nanogpt.record import replacing, to_json, write_atomic

SCHEMA_VERSION = 1
FOLDER = "evaluations"


def default_file(place: str, name: str, limit: int | None) -> Path | None:
    """RUN/evaluations/NAME.json; with a checkpoint's name in it for one checkpoint, and the limit for a part.

    None where the model is no run's, so that nothing is beside it that is ours.
    """
    part = f".limit-{limit}" if limit is not None else ""
    path = Path(place)
    if (path / "config.yaml").is_file():
        return path / FOLDER / f"{name}{part}.json"
    if path.is_file() and path.suffix == ".pt":
        return _folder_of(path) / FOLDER / f"{name}.{path.stem}{part}.json"
    return None


def _folder_of(checkpoint: Path) -> Path:
    """The run in whose attempts a checkpoint lies, else the folder it is in."""
    above = checkpoint.resolve().parents
    return above[2] if len(above) > 2 and above[1].name == "attempts" else checkpoint.parent


def check_writable(file: Path) -> None:
    """Raises UserError where a file of results could not be written: before hours of work, not after them."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"eval: {file}: cannot be written: {os_reason(error, file)}") from None
    if file.is_dir():
        raise UserError(f"eval: {file}: is a folder; --out takes a file")


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Write them atomically."""
    try:
        write_atomic(file, to_json({"schema_version": SCHEMA_VERSION, **results}))
    except OSError as error:
        raise UserError(f"eval: {file}: cannot be written: {os_reason(error, file)}") from None


def write_items(file: Path, questions: Sequence[Question], answers: Answers) -> None:
    """One line of JSON per item: where it stands, its label, and each text's log-probabilities and choices."""
    try:
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
            for question, verdicts in zip(questions, answers.verdicts, strict=True):
                texts = {text: {"log_probs": v.log_probs, "chosen": v.chosen} for text, v in verdicts.items()}
                item = {"item": question.item.place, "label": question.item.label, "texts": texts}
                lines.write(json.dumps(item, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"eval: {file}: cannot be written: {os_reason(error, file)}") from None
