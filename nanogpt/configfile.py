"""Config files: YAML as people mean it, `base:` chains, overrides, and errors that name file and line."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.config.keys import kinds_with, known_paths, resolve_key, siblings_at
from nanogpt.config.layers import Layers
from nanogpt.config.run import Config
from nanogpt.pyconfig import load_python
from nanogpt.weights.filling import conflict, fill_in
from nanogpt.weights.place import Place

__all__ = ["YamlFile", "build_config", "dump_yaml", "load_config", "load_yaml", "parse_override", "resolve_key"]

COMMAND_LINE = "command line"
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class _Loader(yaml.CSafeLoader):
    """YAML 1.2's scalars: only true/false are booleans, `3e-4` is a float, `1:30` and dates are text."""


class _Dumper(yaml.CSafeDumper):
    """Writes what `_Loader` reads back: quotes exactly the strings that would be read as something else."""


_SCALARS = {
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (r"^(?:<<)$", ["<"]),
}
_Loader.yaml_implicit_resolvers, _Dumper.yaml_implicit_resolvers = {}, {}  # without YAML 1.1's
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _construct_int(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))  # not YAML 1.1's octal: 010 is ten


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class YamlFile:
    """A parsed YAML mapping and the place (`file:line`) of every key and list item in it."""

    path: Path
    data: dict[str, Any]
    places: dict[tuple[str, ...], str]

    def line(self, path: Iterable[str]) -> str:
        """`file:line` of the key at `path`, or of the nearest key above it."""
        keys = tuple(map(str, path))
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, str(self.path))


def load_yaml(path: str | os.PathLike[str], root: str | None = None) -> YamlFile:
    """Read one YAML mapping. Raises UserError when it is missing, broken, no mapping, or repeats a key.

    With `root` the file may be anything, and stands under that key.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file{_nearest_file(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {_reason(error)}") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        places: dict[tuple[str, ...], str] = {}
        if node is not None:
            _note_places(node, () if root is None else (root,), file, places)
        data = {} if node is None else loader.construct_document(node)
        data = data if root is None else {root: data}
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{file}: not YAML: an alias refers to itself, or it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file}: not YAML: {_reason(error)}") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UserError(f"{file}:1: expected a mapping of keys to values, found a {type(data).__name__}")
    return YamlFile(file, data, places)


def _nearest_file(file: Path) -> str:
    names = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
    return did_you_mean(file.name, names) if "did you mean" in did_you_mean(file.name, names) else ""


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _note_places(node: yaml.Node, path: tuple[str, ...], file: Path, places: dict[tuple[str, ...], str]) -> None:
    """Record the line of every key; a key given twice is an error here, since a dict would keep the last silently."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            place = f"{file}:{key.start_mark.line + 1}"
            if here in places:
                first = places[here].rpartition(":")[2]
                raise UserError(f"{place}: {'.'.join(here)}: key given twice (first on line {first})")
            places[here] = place
            _note_places(value, here, file, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*path, str(index))] = f"{file}:{item.start_mark.line + 1}"
            _note_places(item, (*path, str(index)), file, places)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML that `load_yaml` reads back to equal data."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100)


def parse_override(text: str) -> tuple[str, Any]:
    """`n_layer=4` or `--n_layer=4` as (key, value); the value is read as YAML reads it."""
    key, equals, raw = text.removeprefix("--").partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"{COMMAND_LINE}: {text}: expected key=value, as in n_layer=4")
    try:
        return key.replace("-", "_"), yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{COMMAND_LINE}: {key}: {raw!r} is not a value YAML can read") from None


def with_nproc(overrides: Sequence[str], nproc: int | None) -> list[str]:
    """The overrides and `--nproc N`, the flag for one of them. Raises UserError when they say another number."""
    if nproc is None:
        return list(overrides)
    said = [(key, value) for key, value in map(parse_override, overrides) if key in ("nproc", "runtime.nproc")]
    for key, value in said:
        if value != nproc:
            raise UserError(
                f"{COMMAND_LINE}: --nproc={nproc} and {key}={value} contradict each other; give one of them"
            )
    return [*overrides, *([] if said else [f"runtime.nproc={nproc}"])]


def load_file(path: str | os.PathLike[str]) -> YamlFile:
    """A config file: YAML, or a nanoGPT-style `.py` file of plain assignments, which is parsed and never executed."""
    file = Path(path)
    if file.suffix != ".py":
        return load_yaml(file)
    if not file.exists():
        raise UserError(f"{file}: no such file{_nearest_file(file)}")
    found = load_python(file)
    return YamlFile(file, found.data, {(name,): f"{file}:{line}" for name, line in found.lines.items()})


def load_layers(path: str | os.PathLike[str], _seen: tuple[Path, ...] = ()) -> Layers:
    """The file's settings laid over those of its `base:` chain; see `find_base` for where a base is looked for."""
    file = load_file(path)
    seen = (*_seen, file.path.resolve())
    data = dict(file.data)
    base = data.pop("base", None)
    layers = Layers()
    if base is not None:
        place = file.line(("base",))
        if not isinstance(base, str):
            raise UserError(f"{place}: base: expected the name of a config file, got {base!r}")
        target = find_base(base, file.path.parent, place)
        if target.resolve() in seen:
            raise UserError(f"{place}: base: {base} leads back to {file.path}")
        layers = load_layers(target, seen)
    layers.lay(data, file.places, str(file.path))
    return layers


def find_base(name: str, beside: Path, place: str) -> Path:
    """The file that a `base:` names: beside the file that says so, else among the shipped configs."""
    for folder in (beside, CONFIGS):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{place}: base: no such file: {name}{_nearest_file(beside / name) or _nearest_file(CONFIGS / name)}"
    )


def lay_overrides(layers: Layers, overrides: Mapping[str, Any] | Sequence[str], place: str = COMMAND_LINE) -> None:
    """Lay overrides on top: a mapping from keys to values, or `key=value` texts. A key given twice takes the last."""
    if not isinstance(overrides, Mapping):
        overrides = dict(map(parse_override, overrides))
    layers.lay(overrides, {}, place)


def load_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """The validated config of a file with overrides on top. Raises UserError for anything a person got wrong."""
    layers = load_layers(path)
    lay_overrides(layers, overrides)
    return build_config(layers, str(path))


_DEFAULTS = {"train.batch_size": 12, "model.block_size": 1024}


def build_config(layers: Layers, where: str) -> Config:
    """Validate merged layers. The first problem is reported as `place: key: what is wrong; what is allowed`.

    The model's shape comes from the weights where the run starts from some.
    """
    place = None
    if "init_from" in layers.tree:
        layers = layers.copy()  # what the weights say is nothing that was said in a layer
        place = _filled_from_weights(layers, where)
    tree = layers.settle(_DEFAULTS)
    tree.setdefault("train", {})
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, tree, layers, where)) from None
    if place is not None and (problem := conflict(config.model, place, _run_tree)) is not None:
        key, text = problem
        raise UserError(f"{layers.place(('model', key)) or where}: model.{key}: {text}")
    return config


def _filled_from_weights(layers: Layers, where: str) -> Place | None:
    try:
        return fill_in(layers.tree, _run_tree)
    except UserError as error:
        raise UserError(f"{layers.place(('init_from',)) or where}: init_from: {error}") from None


def _run_tree(config: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml, which are all of them."""
    return load_layers(config).tree


def explain(error: ValidationError, tree: Mapping[str, Any], layers: Layers, where: str) -> str:
    """One line for the first problem of a validation, and how many more there are."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    path = _plain_path(problem["loc"], tree)
    message = _message(problem, path, tree)
    place = (
        (layers.latest_named(path, message) if problem["type"] == "value_error" else "") or layers.place(path) or where
    )
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    name = f"{'.'.join(path)}: " if path else ""
    return f"{place}: {name}{message}{more}"


def _plain_path(loc: tuple[int | str, ...], tree: Mapping[str, Any]) -> tuple[str, ...]:
    """pydantic puts the tag of a union's arm into the path; a person wrote no such key."""
    path: list[str] = []
    node: Any = tree
    known = set(known_paths().values())
    for part in loc:
        children = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, Mapping) and part in children:
            node = children[part]
        elif isinstance(node, Mapping) and path[-1:] and path[-1].isdecimal():  # an item of a list has no tag
            node = None
        elif (isinstance(node, Mapping) and part == node.get("kind", part) and (*path, str(part)) not in known) or (
            isinstance(node, str) and part == node
        ):
            continue
        else:
            node = None
        path.append(str(part))
    return tuple(path)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}


def _message(problem: ErrorDetails, path: tuple[str, ...], tree: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = siblings_at(path, tree)
        if kinds := kinds_with(path, tree):
            return f"no such key; allowed: {', '.join(allowed)}; {path[-1]} belongs to kind {' and '.join(kinds)}"
        return f"no such key{did_you_mean(path[-1], allowed)}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context.get("error", problem["msg"]))
    found = f", got {problem['input']!r}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}{found}"
    if kind == "literal_error":
        return f"no such value {problem['input']!r}{_one_of(problem['input'], context['expected'])}"
    if kind == "union_tag_invalid":
        return f"no such kind {context['tag']!r}{_one_of(context['tag'], context['expected_tags'])}"
    return problem["msg"].replace("Input should be", "must be") + found


def _one_of(found: object, quoted: str) -> str:
    allowed = re.findall(r"'([^']*)'", quoted)
    hint = did_you_mean(found, allowed)
    return f"{hint} (allowed: {', '.join(allowed)})" if "did you mean" in hint else hint
