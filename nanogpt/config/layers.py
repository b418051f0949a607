"""Layers of settings: base files, the file itself, the command line. Each value knows where it was said."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nanogpt.config.aliases import ALIASES
from nanogpt.config.data import named_corpus
from nanogpt.config.errors import UserError
from nanogpt.config.keys import default_kinds, known_paths, resolve_key
from nanogpt.config.model import kind_of
from nanogpt.config.training import HORIZONS
from nanogpt.config.trunks import COUNT_THEIR_OWN

Path = tuple[str, ...]
CORPUS = ("data", "corpus")


@dataclass
class Layers:
    """The settings merged so far, and where each of them was said (`configs/a.yaml:7`, `command line`)."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    deferred: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Where the value at `path`, or the nearest section above it, was said."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def latest_named(self, section: Path, message: str) -> str:
        """The place of the key laid last among those of `section` that a message names."""
        named = (p for p in reversed(self.places) if p[: len(section)] == section and p and p[-1] in message)
        return next((self.places[path] for path in named if path != section), "")

    def says(self, path: Path) -> bool:
        """Whether some layer gives a value for `path`."""
        return self._value(path) is not None

    def copy(self) -> Self:
        """An independent copy, to lay a sweep's factors over a shared base."""
        return type(self)(copy.deepcopy(self.tree), dict(self.places), dict(self.deferred))

    def lay(self, tree: Mapping[str, Any], where: Mapping[Path, str], default_place: str = "") -> None:
        """Lay one more layer on top. Keys may be nested, dotted, unique leaf names, or nanoGPT's flags."""
        named = {key: where.get((key,), default_place) for key in tree}
        settled = {key: _resolve(key, value, named[key]) for key, value in tree.items()}
        _refuse_repeats(tree, settled, named)
        self._drop_horizons(tree, settled)
        trunk, said = self._trunk(), {dotted for key in tree for dotted in _leaves(settled[key], tree[key])}
        # A kind goes first: it clears another kind's settings, but not those said beside it.
        for key, value in sorted(tree.items(), key=lambda item: _kinds_first(settled[item[0]], item[1])):
            self._assign(settled[key], value, (key,), where, named[key])
        self._write_kinds()
        if self._trunk() != trunk and "model.n_layer" not in said:
            self._drop_n_layer()

    def _trunk(self) -> str | None:
        return kind_of(self._value(("model", "trunk")))

    def _drop_n_layer(self) -> None:
        """A later layer's trunk that counts its own blocks replaces an earlier layer's `n_layer`, and the reverse."""
        model = self.tree.get("model", {})
        if "n_layer" in model and (model["n_layer"] is None) == (self._trunk() not in COUNT_THEIR_OWN):
            del model["n_layer"]
            self.places.pop(("model", "n_layer"), None)

    def _write_kinds(self) -> None:
        """Write out the kinds left to their default, so that a later layer's other kind is seen as another."""
        for path, kind in default_kinds().items():
            section = self._value(path)
            if isinstance(section, dict):
                section.setdefault("kind", kind)

    def _drop_horizons(self, tree: Mapping[str, Any], settled: Mapping[str, str]) -> None:
        """A later layer's horizon replaces an earlier one; two in one layer stay, and are an error later."""
        given = {dotted.rpartition(".")[2] for dotted in settled.values() if _train_path(dotted)}
        section = tree.get("train")
        if isinstance(section, Mapping):
            given |= set(section)
        if given & set(HORIZONS):
            for name in HORIZONS:
                self.tree.get("train", {}).pop(name, None)

    def _assign(self, dotted: str, value: Any, source: Path, where: Mapping[Path, str], place: str) -> None:
        if dotted in ALIASES and (dotted not in known_paths() or not _means_itself(dotted, value)):
            self._assign_alias(dotted, value, place)
            return
        path = tuple(dotted.split("."))
        node = self.tree
        for depth, key in enumerate(path[:-1], start=1):
            if not isinstance(node.get(key), dict):
                # `ffn: swiglu` followed by `ffn.hidden: 64` keeps the kind.
                node[key] = {"kind": node[key]} if isinstance(node.get(key), str) else {}
            self.places.setdefault(path[:depth], place)
            node = node[key]
        self._merge(node, path, value, source, where, place)

    def _merge(
        self, node: dict[str, Any], path: Path, value: Any, source: Path, where: Mapping[Path, str], place: str
    ) -> None:
        key, place = path[-1], where.get(source, place)
        value = named_corpus(value) if path == CORPUS else value
        self.places.pop(path, None)  # laid again: moves to the end, so that the order says what came last
        self.places[path] = place
        old = node.get(key)
        if key == "kind" and old not in (None, value):
            node.clear()
            self._forget_below(path[:-1])
            self.places[path[:-1]] = self.places[path] = place
        if not isinstance(value, Mapping):
            self._forget_below(path)
            node[key] = value
            return
        if not isinstance(old, dict) or ("kind" in value and "kind" in old and old["kind"] != value["kind"]):
            keep = {"kind": old} if isinstance(old, str) and value.get("kind", old) == old else {}
            node[key] = keep
        for name, child in value.items():
            self._merge(node[key], (*path, str(name)), child, (*source, str(name)), where, place)

    def _forget_below(self, path: Path) -> None:
        """Drop the places of what a new value at `path` has replaced."""
        for below in [known for known in self.places if len(known) > len(path) and known[: len(path)] == path]:
            del self.places[below]

    def _assign_alias(self, flag: str, value: Any, place: str) -> None:
        alias = ALIASES[flag]
        if alias.needs:
            self.deferred[flag] = (value, place)
            return
        for dotted, translated in _translate(flag, place, value).items():
            self._assign(dotted, translated, (), {}, place)

    def settle(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the flags that depend on other settings, and return the merged tree.

        `defaults` gives the value of a needed key that no layer set.
        """
        for flag, (value, place) in sorted(self.deferred.items(), reverse=True):
            needed = [self._lookup(dotted, defaults) for dotted in ALIASES[flag].needs]
            for dotted, translated in _translate(flag, place, value, *needed).items():
                self._assign(dotted, translated, (), {}, place)
        self.deferred.clear()
        return self.tree

    def _lookup(self, dotted: str, defaults: Mapping[str, Any]) -> Any:
        if dotted == "runtime.micro_batch_size":
            micro = self._value(tuple(dotted.split(".")))
            return micro if micro is not None else self._lookup("train.batch_size", defaults)
        value = self._value(tuple(dotted.split(".")))
        return defaults[dotted] if value is None else value

    def _value(self, path: Path) -> Any:
        node: Any = self.tree
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node


def _kinds_first(dotted: str, value: Any) -> tuple[bool, int]:
    """A sort key: kinds before all else, also in the short form (`ffn: swiglu`), and outer ones before inner ones."""
    short = isinstance(value, str) and tuple(dotted.split(".")) in default_kinds()
    kind = short or dotted.endswith(".kind")
    return not kind, dotted.count(".") - (not short) if kind else 0


def _refuse_repeats(tree: Mapping[str, Any], settled: Mapping[str, str], named: Mapping[str, str]) -> None:
    """One setting said twice in one layer under two spellings would silently take the last value."""
    said: dict[str, str] = {}
    for key, value in tree.items():
        for dotted in _leaves(settled[key], value):
            if dotted in said:
                place = f"{named[key]}: " if named[key] else ""
                raise UserError(f"{place}{dotted}: given twice (as {said[dotted]} and as {key})")
            said[dotted] = str(key)


def _leaves(dotted: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield dotted
        return
    for key, child in value.items():
        yield from _leaves(f"{dotted}.{key}", child)


def _train_path(dotted: str) -> bool:
    return dotted.startswith("train.")


def _resolve(key: str, value: Any, place: str) -> str:
    # Of a whole section only the name is checked here; its inner keys are when the config is built.
    return resolve_key(str(key), place, section=isinstance(value, Mapping), value=value)


def _means_itself(dotted: str, value: Any) -> bool:
    """`init_from` is a key of ours as well as a flag: only the old value `resume` is translated."""
    return dotted == "init_from" and value != "resume"


def _translate(flag: str, place: str, value: Any, *needed: Any) -> dict[str, Any]:
    try:
        return ALIASES[flag].assign(value, *needed)
    except UserError as error:
        raise UserError(f"{place}: {flag}: {error}" if place else f"{flag}: {error}") from None
