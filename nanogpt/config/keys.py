"""The names of config keys: every dotted path of the schema, unique leaf names, and nanoGPT's flags."""

import functools
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from nanogpt.config.aliases import ALIASES
from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.noncausal import why_non_causal
from nanogpt.config.run import Config


def arms(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a field may hold: one, the arms of a tagged union, or none for a plain value."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if typing.get_origin(annotation) is typing.Annotated:
        return arms(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [arm for member in typing.get_args(annotation) for arm in arms(member)]
    return []


def _items(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that the items of a list may be."""
    return arms(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is tuple else []


def _walk(section: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        for arm in arms(field.annotation):
            yield from _walk(arm, (*prefix, name))


@functools.cache
def known_paths() -> dict[str, tuple[str, ...]]:
    """Every key of the schema by its dotted name, sections included, in the order of the schema."""
    return {".".join(path): path for path in _walk(Config, ())}


@functools.cache
def _by_ending() -> dict[str, tuple[str, ...]]:
    """Dotted names by each of their endings: `kind`, `ffn.kind` and `model.ffn.kind` all lead there."""
    endings: dict[str, list[str]] = defaultdict(list)
    for dotted, path in known_paths().items():
        for start in range(len(path)):
            endings[".".join(path[start:])].append(dotted)
    return {ending: tuple(names) for ending, names in endings.items()}


def resolve_key(key: str, where: str = "", section: bool = False, value: Any = None) -> str:
    """The dotted name of a key given by that name or by a unique ending of it; nanoGPT's flags stay as they are.

    `section` says that a mapping stands there, so that a misspelt section is answered with a section's name;
    `value` is what stands there, for it may name a routing that is refused with a reason.
    Raises UserError for an unknown key (with the nearest name) and for an ambiguous leaf (with the candidates).
    """
    if key in known_paths() or key in ALIASES:
        return key
    candidates = _by_ending().get(key, ())
    if len(candidates) == 1:
        return candidates[0]
    place = f"{where}: " if where else ""
    if candidates:
        raise UserError(f"{place}{key}: ambiguous; write one of {', '.join(candidates)}")
    if _may_route(key) and (reason := why_non_causal({key.rpartition(".")[2]: value})):
        raise UserError(f"{place}{key}: {reason}")
    raise UserError(f"{place}{key}: no such key{_nearest(key, section)}")


def _may_route(key: str) -> bool:
    """Whether a key that does not exist may be meant for the feed-forward layer or the trunk."""
    first = key.split(".")[0]
    return first == "model" or first not in Config.model_fields


def _nearest(key: str, section: bool) -> str:
    head, _, leaf = key.rpartition(".")
    siblings = [path[-1] for path in known_paths().values() if ".".join(path[:-1]) == head]
    if head and siblings:
        return did_you_mean(leaf, siblings)
    if section:
        return did_you_mean(key, Config.model_fields)
    names = [name for name, paths in _by_ending().items() if len(paths) == 1] + list(ALIASES)
    hint = did_you_mean(key, names)
    return hint if "did you mean" in hint else "; `python -m nanogpt schema config` lists them all"


def short_names() -> dict[str, str]:
    """Every name but a full dotted path that a key goes by: unique endings with their key, and nanoGPT's flags."""
    endings = {name: paths[0] for name, paths in _by_ending().items() if len(paths) == 1 and name != paths[0]}
    return {**endings, **{flag: alias.meaning for flag, alias in ALIASES.items() if flag not in known_paths()}}


def siblings_at(path: tuple[str, ...], tree: Mapping[str, Any]) -> list[str]:
    """The keys that may stand beside the last one of `path`, given the kinds chosen in `tree`."""
    chosen, _ = _section_at(path[:-1], tree)
    return list(chosen.model_fields) if chosen is not None else []


def kinds_with(path: tuple[str, ...], tree: Mapping[str, Any]) -> list[str]:
    """The kinds of the section around `path` that have its last key."""
    _, others = _section_at(path[:-1], tree)
    return [str(_kind_of(arm)) for arm in others if _kind_of(arm) is not None and path[-1] in arm.model_fields]


def _section_at(path: tuple[str, ...], tree: Mapping[str, Any]) -> tuple[type[BaseModel] | None, list[type[BaseModel]]]:
    """The section at `path` given the kinds chosen in `tree`, and all that it may be."""
    section: type[BaseModel] = Config
    candidates: list[type[BaseModel]] = []
    node: Any = tree
    for key in path:
        if isinstance(node, list | tuple):  # the key is a number, and what stands there is of the section found before
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
            continue
        node = node.get(key) if isinstance(node, Mapping) else None
        field = section.model_fields.get(key)
        candidates = arms(field.annotation) or _items(field.annotation) if field is not None else []
        if not candidates:
            return None, []
        kind = node.get("kind") if isinstance(node, Mapping) else node
        section = next((arm for arm in candidates if _kind_of(arm) == kind), candidates[0])
    return section, candidates


@functools.cache
def default_kinds() -> dict[tuple[str, ...], str]:
    """The kind that each tagged section has when none is written, by the section's path."""
    return dict(_kinds(Config, ()))


def _kinds(section: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in section.model_fields.items():
        kind = getattr(field.default, "kind", None)
        if isinstance(kind, str):
            yield (*prefix, name), kind
        for arm in arms(field.annotation):
            yield from _kinds(arm, (*prefix, name))


def _kind_of(arm: type[BaseModel]) -> Any:
    field = arm.model_fields.get("kind")
    return field.default if field is not None else None
