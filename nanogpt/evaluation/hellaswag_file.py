"""HellaSwag's items from its lines of JSON: a local file, or the validation split, downloaded once and kept."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.config.diskfull import os_reason
from nanogpt.config.errors import did_you_mean
from nanogpt.downloads import fetch, why
from nanogpt.evaluation.hellaswag import Item
from nanogpt.record import replacing

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
NAME = "hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"  # of the 10,042 items
LEAST_ENDINGS = 2


def items_file(given: Path | None, root: Path) -> Path:
    """The file to read: the one given, else the validation split under `root`, downloaded where it is not there yet.

    Raises UserError where there is none, and none can be had.
    """
    if given is not None:
        if given.is_file():
            return given
        folder = given.parent
        there = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
        hint = did_you_mean(given.name, there)
        raise UserError(f"eval: --data {given}: no such file{hint if 'did you mean' in hint else ''}")
    kept = root / "hellaswag" / NAME
    if not kept.is_file():
        _download(kept)
    return kept


def _download(kept: Path) -> None:
    try:
        content = fetch(URL, SHA256)
    except OSError as error:
        raise UserError(
            f"hellaswag: cannot download {URL} ({why(error)}); fetch it elsewhere and pass --data FILE, "
            f"or put it at {kept}"
        ) from None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{kept}: cannot be written: {os_reason(error, kept)}") from None


def read_items(file: Path, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a file (None: all). Raises UserError naming the line that is no item."""
    items = list(itertools.islice(_items(file), limit))
    if not items:
        raise UserError(f"{file}: no items in it; expected one JSON object per line")
    return items


def _items(file: Path) -> Iterator[Item]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _item(f"{file}:{number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text: {error}") from None


def _item(place: str, line: str) -> Item:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: expected an object with 'endings' and 'label', got {_short(fields)}")
    endings = fields.get("endings")
    if not isinstance(endings, list) or len(endings) < LEAST_ENDINGS or not all(isinstance(e, str) for e in endings):
        raise UserError(f"{place}: 'endings': expected a list of {LEAST_ENDINGS} texts or more, got {_short(endings)}")
    return Item(place, _label(place, fields.get("label"), len(endings)), tuple(endings), fields)


def _label(place: str, label: Any, endings: int) -> int:
    """The right ending's number; some copies of the data have it as a text. The test split hides it."""
    if label == "":
        raise UserError(f"{place}: 'label' is empty, as in HellaSwag's test split, whose answers are not public")
    number = int(label) if isinstance(label, str) and label.isdecimal() and label.isascii() else label
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < endings:
        raise UserError(f"{place}: 'label': expected a number from 0 to {endings - 1}, got {_short(label)}")
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 60 else f"{text[:57]}..."
