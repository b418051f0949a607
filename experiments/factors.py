"""The varied factors of a run: their dotted names and plain values, and the label that shows them to people."""

import functools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from experiments.grid import Point
from nanogpt.config import Config
from nanogpt.config.aliases import ALIASES
from nanogpt.config.keys import arms
from nanogpt.configfile import resolve_key

LONGEST_LABEL = 100  # file names end at 255 bytes, and the id and temporary suffixes need room
VARIANT = "variant"  # the factor that a sweep's named variants are
SHORT_NAMES = {"learning_rate": "lr", "adamw_learning_rate": "adamw_lr"}


def factor_names(points: Sequence[Point]) -> dict[str, str]:
    """Every key that any point sets, with the dotted name of the factor it is: `use_rope` varies `model.position`."""
    keys = {key: value for point in points for key, value in point.settings.items()}
    return {key: _factor_name(key, value) for key, value in keys.items()}


def _factor_name(key: str, value: Any) -> str:
    dotted = resolve_key(key)
    alias = ALIASES.get(dotted)
    if alias is None or alias.needs or dotted in Config.model_fields:
        return dotted
    return next(iter(alias.assign(value)))


def factor_values(config: Config, point: Point, names: Mapping[str, str]) -> dict[str, Any]:
    """The value of every factor of the study in this run, as a plain value; a section becomes its text."""
    tree = config.model_dump(mode="json")
    values: dict[str, Any] = {} if point.variant is None else {VARIANT: point.variant.name}
    for key, dotted in names.items():
        node: Any = tree
        for part in dotted.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        # A flag that combines several keys, as gradient_accumulation_steps does, has no place of its own.
        values[dotted] = point.settings.get(key) if dotted in ALIASES and dotted not in tree else node
    sections = {dotted: value for dotted, value in values.items() if isinstance(value, Mapping)}
    return {**values, **{dotted: section_text(_explicit(config, dotted)) for dotted in sections}, **_weights(values)}


def _weights(values: Mapping[str, Any]) -> dict[str, str]:
    """Weights to start from go by their name: `init_from=hf:gpt2`, beside `init_from=scratch`."""
    found = values.get("init_from")
    return {"init_from": found["weights"]} if isinstance(found, Mapping) else {}


def _explicit(config: Config, dotted: str) -> dict[str, Any]:
    """What differs from the defaults of a section, and its kind."""
    section: Any = config
    for part in dotted.split("."):
        section = getattr(section, part)
    kind = {"kind": section.kind} if hasattr(section, "kind") else {}
    return {**kind, **section.model_dump(mode="json", exclude_defaults=True)}


def takes_whole_numbers(dotted: str) -> bool:
    """Whether a key of the config holds integers, so that a range over it is rounded."""
    sections: list[type[BaseModel]] = [Config]
    *outer, leaf = dotted.split(".")
    for name in outer:
        sections = [a for s in sections if name in s.model_fields for a in arms(s.model_fields[name].annotation)]
    return any(_holds_int(s.model_fields[leaf].annotation) for s in sections if leaf in s.model_fields)


def _holds_int(annotation: Any) -> bool:
    inner = typing.get_args(annotation)
    return annotation is int or (typing.get_origin(annotation) is not typing.Literal and any(map(_holds_int, inner)))


def section_text(section: Mapping[str, Any]) -> str:
    """A section given as a factor in one word: its kind, with the values that differ from its defaults in brackets."""
    inner = {key: value for key, value in section.items() if key != "kind"}
    kind = str(section.get("kind", ""))
    if not inner:
        return kind or "default"
    values = ",".join(f"{key}={value_text(value)}" for key, value in inner.items())
    return f"{kind}({values})" if kind else values


def value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return section_text(value)
    if isinstance(value, float):
        return f"{value:g}"  # six digits: a point of a logspace reads lr=0.00948683
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def label_of(factors: Mapping[str, Any]) -> str:
    """`n_layer=4-lr=0.003`: for people to read; never parsed, and folders are found by their id."""
    names = short_names(factors)
    text = "-".join(f"{names[key]}={value_text(value)}" for key, value in factors.items())
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)[:LONGEST_LABEL] or "run"


def short_names(dotted: Iterable[str]) -> Mapping[str, str]:
    """The shortest ending of each dotted name that is its own among them; `x.kind` is called x."""
    return _short_names(tuple(dotted))


@functools.lru_cache(maxsize=16)  # every run of a study has the same factors
def _short_names(names: tuple[str, ...]) -> Mapping[str, str]:
    leaves = {name: _leaf(name) for name in names}
    clashes = {leaf for leaf in leaves.values() if list(leaves.values()).count(leaf) > 1}
    return {name: name if leaf in clashes else SHORT_NAMES.get(leaf, leaf) for name, leaf in leaves.items()}


def _leaf(dotted: str) -> str:
    return dotted.removesuffix(".kind").rpartition(".")[2]
