"""A grid or a search given in Python, as the study file that asks for the same."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt.configfile import dump_yaml


def plain(value: Any) -> Any:
    """Python's and numpy's ways to write lists and numbers (ranges, tuples, arrays, numpy scalars) as plain ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, without importing numpy
        return plain(value.tolist())
    if isinstance(value, list | tuple | range | set):
        return [plain(child) for child in value]
    return str(value) if isinstance(value, os.PathLike) else value


def as_study(
    base: str | os.PathLike[str],
    base_params: Mapping[str, Any] | None,
    grid_params: Mapping[str, Any] | None,
    seeds: Sequence[int] | int | None,
    launcher: str | Mapping[str, Any] | None,
    supervise: Mapping[str, Any] | None,
    search: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What was asked for in Python, as the study file that asks for the same."""
    varied = plain({"grid": grid_params or {}, **({} if seeds is None else {"seeds": seeds}), **(search or {})})
    names = [*varied["grid"], *(varied.get("space") or {})]
    return {
        "question": f"How does the loss depend on {', '.join(names or ['the seed'])}?",
        "hypothesis": "None was stated.",
        "base": str(Path(base).resolve()),
        "config": plain(base_params or {}),
        "sweep": varied,
        **({} if launcher is None else {"launcher": plain(launcher)}),
        **({} if supervise is None else {"supervise": plain(supervise)}),
    }


def study_text(name: str, data: Mapping[str, Any], door: str) -> str:
    """That study as YAML."""
    return f"# The study {name}, made by ExperimentRunner.{door}.\n{dump_yaml(data)}"
