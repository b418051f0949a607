"""Where `fit --csv` writes: every file is looked at before the table is read, and written when all of them are made."""

import argparse
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from nanogpt.config import UserError
from nanogpt.record import replacing

FLAGS = ("json", "figure", "corner")
PICTURES = (".png", ".svg", ".pdf")


def targets_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files that are asked for, by the name of their flag.

    UserError for one that is the table, for two that are one file, for a picture with another suffix, and for a path
    that nothing can be written to.
    """
    asked = {flag: getattr(arguments, flag) for flag in FLAGS}
    files = {flag: path for flag, path in asked.items() if path is not None and (flag, str(path)) != ("json", "-")}
    for flag, path in files.items():
        if _same(path, Path(arguments.csv)):
            raise UserError(f"fit: --{flag}: {path} is the table itself; give another path")
    for (flag, path), (other, second) in combinations(files.items(), 2):
        if _same(path, second):
            raise UserError(f"fit: --{flag} and --{other} are one file, {path}; give each its own")
    for flag, path in files.items():
        if flag != "json" and path.suffix not in PICTURES:
            raise UserError(f"fit: --{flag}: {path}: a figure is written as one of {', '.join(PICTURES)}")
        if problem := _problem(path):
            raise UserError(f"fit: --{flag}: {path} cannot be written: {problem}")
    return files


def _same(path: Path, other: Path) -> bool:
    """Whether two paths name one file, through links as well."""
    try:
        return path.resolve() == other.resolve() or path.samefile(other)
    except (OSError, RuntimeError):  # one of them is not there yet, or is a circle of links
        return False


def _problem(path: Path) -> str | None:
    """Why no file can take this place, as far as that is known beforehand."""
    folder = path.parent
    if not folder.exists():
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is no folder"
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is no plain file"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"the folder {folder} is not writable"


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write each file as one act. UserError where the disk does not take it."""
    for path, content in contents.items():
        try:
            with replacing(path) as draft:
                draft.write_bytes(content)
        except OSError as error:
            raise UserError(f"fit: {path} cannot be written: {error.strerror or error}") from None
