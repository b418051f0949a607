"""The `sweep:` of a study: products, keys that move together, single points, seeds and ranges, as a list of points."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from experiments.search.spec import Pruner, PrunerField, Sampler, SamplerField, Space, problem_of
from nanogpt.config import UserError, did_you_mean

Place = Callable[..., str]  # path of keys below `sweep` -> "file:line"
MOST_POINTS = 1_000_000  # a typing slip in a range must not fill the memory
_ENDS = {"start": {"type": "number"}, "stop": {"type": "number"}}
_SPACED = {"type": "object", "properties": {**_ENDS, "num": {"type": "integer", "minimum": 1}}}
AXIS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "minItems": 1, "description": "The values, one by one."},
        *(
            {"type": "object", "required": [kind], "properties": {kind: body}, "additionalProperties": False}
            for kind, body in (
                ("logspace", {**_SPACED, "required": ["start", "stop", "num"], "additionalProperties": False}),
                ("linspace", {**_SPACED, "required": ["start", "stop", "num"], "additionalProperties": False}),
                ("range", {"type": "object", "properties": {**_ENDS, "step": {"type": "number"}},
                           "required": ["start", "stop"], "additionalProperties": False}),
            )
        ),
    ]
}  # fmt: skip


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


def _seed_list(value: Any) -> Any:
    """`seeds: 3` means the seeds 1, 2, 3."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"expected a number of seeds of at least 1, or a list of seeds, got {value!r}")
    return list(range(1, value + 1)) if isinstance(value, int) and not isinstance(value, bool) else value


Axis = Annotated[Any, WithJsonSchema(AXIS_SCHEMA)]
Axes = dict[str, Axis]
_OneOrMore = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer"}}]}


class Sweep(BaseModel):
    """Which points of the space of configs are run: (grid x zip + points) x seeds, less what the filters drop."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    grid: Axes = Field({}, description="Every combination of these values. Keys are dotted or unique leaf names.")
    zips: Annotated[list[Axes], BeforeValidator(_listed)] = Field(
        [], alias="zip", description="Groups of keys that move together, value by value; groups multiply the grid."
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Named sets of settings that are compared; they multiply the grid, as the factor `variant`."
    )
    points: list[dict[str, Any]] = Field([], description="Single points, added to the product of grid and zip.")
    seeds: Annotated[list[int] | None, BeforeValidator(_seed_list), WithJsonSchema(_OneOrMore)] = Field(
        None, description="Every point once per seed; a number N means 1..N."
    )
    filters: Annotated[list[str], BeforeValidator(_listed)] = Field(
        [], alias="filter", description="Runs are kept where all of these hold, e.g. 'n_embd >= 16 or tokens < 1e6'."
    )
    sampler: SamplerField = Field(Sampler(), description="grid, or where a search takes its trials from.")
    space: Space = Field({}, description="What a search varies: keys with log, uniform, int or choice.")
    pruner: PrunerField = Field(Pruner(), description="Which trials of a search end early.")

    @model_validator(mode="after")
    def _search_makes_sense(self) -> Self:
        if problem := problem_of(self.sampler, self.space, self.pruner):
            raise ValueError(problem)
        if self.variants and (self.points or self.space):
            raise ValueError(f"variants do not go with {'points' if self.points else 'space'}; they multiply a grid")
        return self


@dataclass(frozen=True)
class Point:
    """The settings of one run as written in the sweep, and the place of each.

    Those of its `variant`, if the sweep has any, are laid under them, and are known by the variant's name alone.
    """

    settings: Mapping[str, Any]
    places: Mapping[str, str]
    variant: "Variant | None" = None


@dataclass(frozen=True)
class Variant:
    """A named set of settings."""

    name: str
    settings: Mapping[str, Any]
    place: str


def expand(sweep: Sweep, place: Place, is_whole: Callable[[str], bool]) -> list[Point]:
    """All points of a sweep before its filters, in the order in which they are written.

    `is_whole(key)` says whether a key takes whole numbers, so that a logspace over it is rounded.
    Raises UserError with file and line for an empty or unequal axis, a repeated value and a bad range.
    """
    axes = _Axes(place, is_whole)
    groups = [axes.grid(key, values) for key, values in sweep.grid.items()]
    groups += [axes.zipped(index, group) for index, group in enumerate(sweep.zips)]
    if sweep.variants:
        groups.insert(0, [axes.variant(name, settings) for name, settings in sweep.variants.items()])
    if math.prod(map(len, groups)) > MOST_POINTS:
        raise UserError(f"{place()}: more than {MOST_POINTS} points")
    points = list(_product(groups)) if groups or not sweep.points else []
    points += [axes.single(index, settings) for index, settings in enumerate(sweep.points)]
    if sweep.seeds is not None:
        seeds = axes.points(("seeds",), {"seed": sweep.seeds})
        points = [_joined((point, seed), place) for point in points for seed in seeds]
    _refuse_repeats(points, place)
    return points


@dataclass(frozen=True)
class _Axes:
    place: Place
    is_whole: Callable[[str], bool]

    def grid(self, key: str, values: Any) -> list[Point]:
        return self.points(("grid",), {key: self.values(key, values, self.place("grid", key))})

    def zipped(self, index: int, group: Axes) -> list[Point]:
        # `zip:` may be one mapping or a list of them; the line is found either way.
        path = ("zip", str(index))
        columns = {key: self.values(key, values, self.place(*path, key)) for key, values in group.items()}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
            raise UserError(
                f"{self.place(*path)}: sweep.zip: keys that move together need equally many values; {counts}"
            )
        return self.points(path, columns)

    def variant(self, name: str, settings: Mapping[str, Any]) -> Point:
        return Point({}, {}, Variant(name, settings, self.place("variants", name)))

    def single(self, index: int, settings: Mapping[str, Any]) -> Point:
        return Point(settings, {key: self.place("points", str(index), key) for key in settings})

    def points(self, path: tuple[str, ...], columns: Mapping[str, list[Any]]) -> list[Point]:
        places = {key: self.place(*path, key) for key in columns}
        return [Point(dict(zip(columns, row, strict=True)), places) for row in zip(*columns.values(), strict=True)]

    def values(self, key: str, axis: Any, place: str) -> list[Any]:
        """The values of one axis: a list as it stands, or a range spelled out."""
        values = _spread(axis, self.is_whole(key), f"{place}: {key}") if isinstance(axis, Mapping) else axis
        if not isinstance(values, list | tuple):
            raise UserError(f"{place}: {key}: expected a list of values, or logspace, linspace or range; got {axis!r}")
        if not values:
            raise UserError(f"{place}: {key}: no values, so the sweep is empty")
        return list(values)


def _spread(axis: Mapping[str, Any], whole: bool, place: str) -> list[Any]:
    kind = next(iter(axis), None)
    if len(axis) != 1 or kind not in _RANGES:
        raise UserError(f"{place}: expected one of {', '.join(_RANGES)}{did_you_mean(kind, _RANGES)}")
    body, (make, required, optional) = axis[kind], _RANGES[kind]
    known = (*required, *optional)
    if isinstance(body, Mapping) and (strange := [key for key in body if key not in known]):
        raise UserError(f"{place}: {kind}.{strange[0]}: no such key{did_you_mean(strange[0], known)}")
    if not isinstance(body, Mapping) or not set(required) <= set(body):
        raise UserError(f"{place}: {kind}: expected {', '.join(required)}{_also(optional)}; got {body!r}")
    if wrong := [key for key, value in body.items() if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise UserError(f"{place}: {kind}.{wrong[0]}: expected a number, got {body[wrong[0]]!r}")
    values = make(place, **body)
    return list(dict.fromkeys(round(value) for value in values)) if whole else values


def _also(optional: Iterable[str]) -> str:
    return "".join(f" and optionally {key}" for key in optional)


def _logspace(place: str, start: float, stop: float, num: int) -> list[float]:
    if start <= 0 or stop <= 0:
        raise UserError(f"{place}: logspace: start and stop must be above 0, got {start!r} and {stop!r}")
    return [_tidy(start * (stop / start) ** share) for share in _shares(place, num)]


def _linspace(place: str, start: float, stop: float, num: int) -> list[float]:
    return [_tidy(start + (stop - start) * share) for share in _shares(place, num)]


def _shares(place: str, num: float) -> list[float]:
    """`num` evenly spaced numbers from 0 to 1."""
    if num != int(num) or not 1 <= num <= MOST_POINTS:
        raise UserError(f"{place}: num must be a whole number of at least 1, got {num!r}")
    return [index / max(num - 1, 1) for index in range(int(num))]


def _range(place: str, start: float, stop: float, step: float = 1) -> list[float]:
    """As Python's range: `stop` is not included."""
    if step == 0 or (stop - start) / step > MOST_POINTS:
        raise UserError(f"{place}: range: step {step!r} does not lead from {start!r} to {stop!r}")
    return [_tidy(start + index * step) for index in range(max(0, math.ceil((stop - start) / step - 1e-9)))]


def _tidy(value: float) -> float:
    """12 digits: 1e-3 comes back as 0.001 from a logspace, on every machine, so ids do not hang on the last bit."""
    return float(f"{value:.12g}")


_RANGES: dict[str, tuple[Callable[..., list[float]], tuple[str, ...], tuple[str, ...]]] = {
    "logspace": (_logspace, ("start", "stop", "num"), ()),
    "linspace": (_linspace, ("start", "stop", "num"), ()),
    "range": (_range, ("start", "stop"), ("step",)),
}


def _product(groups: list[list[Point]]) -> Iterator[Point]:
    return (_merge(combination) for combination in itertools.product(*groups))


def _merge(parts: Iterable[Point]) -> Point:
    settings: dict[str, Any] = {}
    places: dict[str, str] = {}
    variant: Variant | None = None
    for part in parts:
        settings.update(part.settings)
        places.update(part.places)
        variant = variant or part.variant
    return Point(settings, places, variant)


def _joined(parts: tuple[Point, Point], place: Place) -> Point:
    if "seed" in parts[0].settings:
        raise UserError(f"{place('seeds')}: sweep.seeds: seed is varied elsewhere in the sweep as well")
    return _merge(parts)


def _refuse_repeats(points: list[Point], place: Place) -> None:
    seen: set[str] = set()
    for point in points:
        name = point.variant.name if point.variant is not None else None
        text = json.dumps([name, point.settings], sort_keys=True, default=str)
        if text in seen:
            shown = ", ".join(f"{key}={value}" for key, value in point.settings.items())
            raise UserError(f"{next(iter(point.places.values()), place())}: the sweep holds {shown} twice")
        seen.add(text)
