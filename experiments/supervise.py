"""The section `supervise:` of a study: how long a run may take, how often it is tried again, and when all stops."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiments.lease import STALE_SECONDS
from nanogpt.config import UserError, did_you_mean

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)"
_DURATION = re.compile(rf"\d+(?:\.\d+)?|{_PART}(?:\s*{_PART})*", re.I)
Place = str | Callable[..., str]


def seconds_of(value: Any) -> float:
    """Seconds from `90`, `90s`, `15m`, `2h`, `1d`, `1h30m` or `3 hours`. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    if not isinstance(value, str) or _DURATION.fullmatch(value.strip()) is None:
        raise ValueError(f"expected a time such as 90s, 15m, 2h or 1d, got {value!r}")
    parts = re.findall(_PART, value, re.I) or [(value, "")]
    return sum(float(number) * _UNITS[unit[:1].lower()] for number, unit in parts)


def _limit(value: Any) -> float | None:
    seconds = None if value is None else seconds_of(value)
    if seconds == 0:
        raise ValueError("expected a time above zero, got 0")
    return seconds


def _lease(value: Any) -> float:
    seconds = seconds_of(value)
    if seconds < 1:
        raise ValueError(f"expected at least 1s, got {value!r}")
    return seconds


class Supervise(BaseModel):
    """What a worker does with runs that take too long or fail. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_limit: Annotated[float | None, BeforeValidator(_limit)] = Field(
        None, description="Most time of one attempt, such as 2h; then it is stopped and counts as a timeout."
    )
    retries: Annotated[int, Field(strict=True, ge=0)] = Field(
        1, description="How often a failed run is tried again by itself; the same failure twice is not."
    )
    backoff: Annotated[float, BeforeValidator(seconds_of)] = Field(
        10.0, description="Wait before the first retry; doubled before each further one."
    )
    on_error: Literal["continue", "stop"] = Field("continue", description="stop: the first failure ends the study.")
    lease: Annotated[float, BeforeValidator(_lease)] = Field(
        STALE_SECONDS, description="A worker that shows no sign of life for so long loses its runs to others."
    )
    max_failures: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        3, description="So many runs with the same failure end the study; null for no end."
    )


def check_supervise(value: Any, where: Place = "supervise") -> Supervise:
    """The section as a model. Raises UserError in one line, with the place and the nearest name."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{_at(where)}: supervise: expected settings such as {{retries: 2}}, got {value!r}")
    try:
        return Supervise.model_validate(dict(value or {}))
    except ValidationError as error:
        raise UserError(section_problem(error, "supervise", where, list(Supervise.model_fields))) from None


def section_problem(error: ValidationError, section: str, where: Place, allowed: list[str]) -> str:
    """The first problem of a section in one line: its place, what was found, what is allowed.

    `section` names the keys: `plan` makes `plan.price`, and `--` the flag `--price`.
    """
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    key = section + ".".join(path) if section == "--" else ".".join([section, *path])
    if problem["type"] == "extra_forbidden":
        return f"{_at(where, path)}: {key}: no such key{did_you_mean(path[-1], allowed)}"
    said = problem["msg"].removeprefix("Value error, ")
    if not said.startswith("expected"):
        said = f"{said.replace('Input should be', 'expected')}, got {problem['input']!r}"
    return f"{_at(where, path)}: {key}: {said}"


def _at(where: Place, path: list[str] | None = None) -> str:
    return where if isinstance(where, str) else where(*(path or []))
