"""`Study` and `RunSpec`: a question, a base and a sweep, turned into validated configs before anything launches."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import ValidationError

import nanogpt.config
from experiments import grid
from experiments.analysis.filters import Filter
from experiments.factors import VARIANT, factor_names, takes_whole_numbers
from experiments.fromcode import as_study, study_text
from experiments.grid import Sweep
from experiments.launchers.settings import KINDS, as_section, check_launcher
from experiments.planner.settings import PlanSettings, check_plan
from experiments.runspec import RunSpec, make_spec
from experiments.search.locking import first_specs
from experiments.search.search import Search
from experiments.sectionschema import lay_sections
from experiments.studyfile import StudyFile, Variant, explain, variant_named, with_variant
from experiments.supervise import Supervise, check_supervise
from nanogpt.config import UserError, canonical_json, did_you_mean
from nanogpt.config.keys import known_paths, short_names
from nanogpt.config.layers import Layers
from nanogpt.configfile import (
    YamlFile,
    find_base,
    lay_overrides,
    load_file,
    load_layers,
    load_yaml,
    parse_override,
    resolve_key,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, a hypothesis, a base config, a sweep, and the analysis that answers it.

    `place` tells where a key below `sweep` stands, `line` where any key does. `text` is the study as YAML, `files` the
    sha256 of every file that was read for it, and `hash` what must be equal for an earlier lock to hold. `size` is the
    one of the file's `sizes` that was chosen, None for the study as written.
    """

    name: str
    question: str
    hypothesis: str
    source: str
    text: str
    layers: Layers
    sweep: Sweep
    fit: dict[str, Any] | None
    optimum: dict[str, Any] | None
    approaches: dict[str, Any] | None
    compare: dict[str, Any] | None
    claims: list[str]
    report: dict[str, Any]
    limits: str
    sizes: tuple[str, ...]
    size: str | None
    launcher: dict[str, Any] | None
    supervise: dict[str, Any]
    plan: dict[str, Any]
    overrides: dict[str, Any]
    files: dict[str, str]
    place: Callable[..., str]
    line: Callable[..., str]

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], overrides: Sequence[str] | Mapping[str, Any] = (), size: str | None = None
    ) -> Self:
        """Read and check a study file, at one of its `sizes` if named. Its results are those of `<name>-<size>` then.

        Raises UserError with file and line; the runs are checked by `runs()`.
        """
        file = load_yaml(path)
        try:
            asked = StudyFile.model_validate(file.data)
        except ValidationError as error:
            raise UserError(explain(error, lambda *path: file.line(path))) from None
        variant = variant_named(asked, size, str(file.path))
        asked = with_variant(asked, variant)
        base = find_base(asked.base, file.path.parent, file.line(("base",))) if asked.base else None
        layers = _base_layers(base) if base else Layers()  # this finds a chain that leads back to itself
        chain = _base_chain(base) if base else []
        place = _sweep_places(file, size, variant)
        _refuse_empty(asked.sweep, place)
        layers.lay(asked.config, _places_below(file, "config"), str(file.path))
        if size is not None:
            layers.lay(variant.config, _places_below(file, "sizes", size, "config"), str(file.path))
        line = _section_places(file, size, variant)
        _check_analysis(asked, line)
        _check_execution(asked, lambda *path: file.line(path))
        files = [file.path, *chain]
        name = "-".join(part for part in (asked.name or file.path.stem, size) if part)
        return cls._build(name, asked, layers, files, place, line, str(file.path), _pairs(overrides), size)

    @classmethod
    def from_grid(
        cls,
        name: str,
        base_config_path: str | os.PathLike[str],
        base_params: Mapping[str, Any] | None = None,
        grid_params: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | int | None = None,
        launcher: str | Mapping[str, Any] | None = None,
        supervise: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> Self:
        """The study of a grid or a search given in Python. Keys as in a study file: dotted, unique leaf names,
        nanoGPT's flags; `search` holds the keys of `sweep:` that make it one (`sampler`, `space`, `pruner`, `filter`).
        """
        door = "run_grid" if search is None else "run_search"
        if not isinstance(name, str):
            raise UserError(f"{door}: {'grid_name' if search is None else 'name'}: expected text, got {name!r}")
        data = as_study(base_config_path, base_params, grid_params, seeds, launcher, supervise, search)
        try:
            asked = StudyFile.model_validate(data)
        except ValidationError as error:
            raise UserError(explain(error, lambda *path: f"grid {name}" if search is None else door)) from None
        _check_execution(asked, lambda *path: door)
        layers = _base_layers(Path(base_config_path))
        layers.lay(asked.config, {}, "base_params")

        def place(*path: str) -> str:
            return path[0] if path and path[0] in (search or {}) else "grid_params"

        study = cls._build(
            name, asked, layers, _base_chain(Path(base_config_path)), place, lambda *path: door, door=door
        )
        return dataclasses.replace(study, text=study_text(name, data, door))

    @classmethod
    def _build(
        cls,
        name: str,
        asked: StudyFile,
        layers: Layers,
        files: Sequence[Path],
        place: Callable[..., str],
        line: Callable[..., str],
        source: str = "",
        overrides: Mapping[str, Any] = MappingProxyType({}),
        size: str | None = None,
        door: str = "",
    ) -> Self:
        if not NAME.fullmatch(name):
            raise UserError(f"{source or door}: name: {name!r} cannot name a folder; use letters, digits, . _ -")
        launcher = None if asked.launcher is None else as_section(check_launcher(asked.launcher))
        if launcher is not None and "nproc" in launcher and not layers.says(("runtime", "nproc")):
            layers.lay({"runtime.nproc": launcher["nproc"]}, {}, place("launcher", "nproc"))
        lay_overrides(layers, overrides)
        study = cls(
            name=name,
            question=asked.question.strip(),
            hypothesis=asked.hypothesis.strip(),
            source=source,
            text=files[0].read_text(encoding="utf-8"),
            layers=layers,
            sweep=asked.sweep,
            fit=asked.fit,
            optimum=asked.optimum,
            approaches=asked.approaches,
            compare=asked.compare,
            claims=list(asked.claims),
            report=asked.report,
            limits=asked.limits.strip(),
            sizes=tuple(asked.sizes),
            size=size,
            launcher=launcher,
            supervise=dict(asked.supervise or {}),
            plan=dict(asked.plan or {}),
            overrides=dict(overrides),
            files={os.path.relpath(path): _sha256(path.read_bytes()) for path in files},
            place=place,
            line=line,
        )
        study._refuse_double_keys()
        return study

    @property
    def hash(self) -> str:
        """Changes with anything the runs or their analysis are made from, but not with where the files lie."""
        parts = [
            self.text,
            list(self.files.values()),
            {key: str(v) for key, v in self.overrides.items()},
            schema_hash(),
            *([self.size] if self.size is not None else []),
        ]
        return _sha256(canonical_json(parts).encode())

    def runs(self) -> list[RunSpec]:
        """Every run of the sweep, each with its whole config validated; of a search, those known beforehand.

        Raises UserError with file and line for the first thing wrong, and when the filters leave nothing.
        """
        search = self.search()
        if search is not None:
            return first_specs(search, self.place("space"))
        points = grid.expand(self.sweep, self.place, self._whole().__getitem__)
        names = factor_names(points)
        specs = [make_spec(self.layers, point, names, self.place()) for point in points]
        filters = [Filter(text, self.place("filter", str(i))) for i, text in enumerate(self.sweep.filters)]
        kept = [spec for spec in specs if all(each.keeps(spec.factors) for each in filters)]
        if not kept:
            raise UserError(f"{self.place('filter')}: sweep.filter: none of the {len(specs)} runs is left")
        return kept

    def search(self) -> Search | None:
        """What a search of this study proposes from; None where the sweep is a grid. Raises UserError as `runs`."""
        sweep = self.sweep
        if sweep.sampler.kind == "grid":
            return None
        whole = self._whole()
        cells = grid.expand(sweep.model_copy(update={"seeds": None}), self.place, whole.__getitem__)
        example = {key: dimension.value(0.0, whole[key]) for key, dimension in sweep.space.items()}
        seeded = {} if sweep.seeds is None else {"seed": 0}
        for index, text in enumerate(sweep.filters):
            Filter(text, self.place("filter", str(index)))
        return Search(
            sampler=sweep.sampler,
            space=sweep.space,
            pruner=sweep.pruner,
            cells=[dict(cell.settings) for cell in cells],
            seeds=sweep.seeds,
            filters=sweep.filters,
            names=factor_names([*cells, grid.Point({**example, **seeded}, {})]),
            whole=[key for key in sweep.space if whole[key]],
            base=self.layers.tree,
            flags={flag: value for flag, (value, _) in self.layers.deferred.items()},
        )

    def _whole(self) -> dict[str, bool]:
        """Whether each key that varies takes whole numbers. An unknown key is found here, with its place."""
        return {key: takes_whole_numbers(resolve_key(key, place)) for key, place in self._keys()}

    def _keys(self) -> list[tuple[str, str]]:
        """Every key that the sweep varies, and where it stands."""
        return [key for group in self._groups() for key in group]

    def _groups(self) -> list[list[tuple[str, str]]]:
        """The keys that meet in one run: those of all axes, and those of each single point."""
        axes = [(key, self.place("grid", key)) for key in self.sweep.grid]
        axes += [(key, self.place("zip", str(i), key)) for i, group in enumerate(self.sweep.zips) for key in group]
        space = [(key, self.place("space", key)) for key in self.sweep.space]
        points = [[(key, self.place("points", str(i), key)) for key in p] for i, p in enumerate(self.sweep.points)]
        variants = [
            [(key, self.place("variants", name, key)) for key in settings]
            for name, settings in self.sweep.variants.items()
        ]
        return [*(axes + space + variant for variant in variants or [[]]), *(point + space for point in points)]

    def _refuse_double_keys(self) -> None:
        """A key on two axes, or both varied and overridden, would silently take the last value."""
        fixed = {resolve_key(key, "command line") for key in self.overrides}
        for group in self._groups():
            seen: dict[str, str] = {}
            for key, place in group:
                dotted = resolve_key(key, place)
                if dotted in fixed:
                    raise UserError(
                        f"command line: {key}: the sweep varies it ({place}); it cannot be set for all runs"
                    )
                if dotted in seen:
                    raise UserError(f"{place}: {key}: varied twice (first at {seen[dotted]})")
                seen[dotted] = place


def _refuse_empty(sweep: Sweep, place: Callable[..., str]) -> None:
    """An axis that was begun and left empty is a slip; a study of one run names none."""
    for key in ("grid", "zip", "variants", "points", "seeds"):
        field = {"zip": "zips"}.get(key, key)
        if field in sweep.model_fields_set and not getattr(sweep, field):
            raise UserError(f"{place(key)}: sweep.{key}: is empty; give it values, or leave it out")
    if any(not point for point in sweep.points):
        raise UserError(f"{place('points')}: sweep.points: holds an empty point")


def _pairs(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    return dict(overrides if isinstance(overrides, Mapping) else map(parse_override, overrides))


def _sweep_places(file: YamlFile, size: str | None, variant: Variant) -> Callable[..., str]:
    """Places of keys below `sweep`, of the chosen size where it says them. A list of one may be written without its
    dash: then its index is no key."""
    theirs = {Sweep.model_fields[name].alias or name for name in variant.sweep.model_fields_set}

    def place(*path: str) -> str:
        head = ("sizes", size, "sweep") if size is not None and path and path[0] in theirs else ("sweep",)
        plain = (*head, *(part for part in path if not part.isdigit()))
        return file.places.get((*head, *path)) or file.places.get(plain) or file.line((*head, *path))

    return place


def _section_places(file: YamlFile, size: str | None, variant: Variant) -> Callable[..., str]:
    """Places of the keys of the analysis: the chosen size's, where it says them, before the study's."""

    def line(*path: str) -> str:
        if size is not None and path and path[0] in variant.model_fields_set:
            if there := file.places.get(("sizes", size, *path)):
                return there
            if path[0] == "claims":
                return file.line(("sizes", size, *path))
        return file.line(path)

    return line


def _places_below(file: YamlFile, *head: str) -> dict[tuple[str, ...], str]:
    """The places of everything under a key, by the path from there on."""
    return {path[len(head) :]: place for path, place in file.places.items() if path[: len(head)] == head}


def _base_layers(path: Path) -> Layers:
    """The settings of a base. One of nanoGPT's names a folder for its single run, which says nothing of a study's."""
    layers = load_layers(path)
    if path.suffix == ".py":
        layers.tree.get("runtime", {}).pop("out_dir", None)
    return layers


def _base_chain(path: Path) -> list[Path]:
    """A config file and the files its `base:` chain leads to, the nearest first. The chain is known to end."""
    chain = [path]
    while (base := load_file(chain[-1]).data.get("base")) is not None:
        chain.append(find_base(base, chain[-1].parent, str(chain[-1])))
    return chain


def _check_analysis(asked: StudyFile, place: Callable[..., str]) -> None:
    """A misspelt law should be found before hours of training, not after."""
    from experiments.analysis.spec import (
        check_approaches_spec,
        check_compare_spec,
        check_fit_spec,
        check_optimum_spec,
        check_report_spec,
    )
    from experiments.analysis.statements import parse_claim

    if asked.fit is not None:
        check_fit_spec(asked.fit, f"{place('fit')}: fit")
    if asked.optimum is not None:
        check_optimum_spec(asked.optimum, f"{place('optimum')}: optimum")
    if asked.approaches is not None:
        check_approaches_spec(asked.approaches, f"{place('approaches')}: approaches")
    if asked.compare is not None:
        compared = check_compare_spec(asked.compare, f"{place('compare')}: compare")
        if compared.factor == VARIANT and compared.baseline not in asked.sweep.variants:
            known = did_you_mean(str(compared.baseline), asked.sweep.variants) or "; the sweep has no `variants:`"
            raise UserError(f"{place('compare', 'baseline')}: compare.baseline: no such variant{known}")
    check_report_spec(asked.report, f"{place('report')}: report")
    for index, text in enumerate(asked.claims):
        parse_claim(text, f"{place('claims', str(index))}: claims.{index}")


def _check_execution(asked: StudyFile, place: Callable[..., str]) -> None:
    """As for the analysis: with the place of each key."""
    check_launcher(asked.launcher, lambda *path: place("launcher", *path))
    check_supervise(asked.supervise, lambda *path: place("supervise", *path))
    check_plan(asked.plan, lambda *path: place("plan", *path))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def schema_hash() -> str:
    """Changes with the config schema and its defaults, which a lock must not outlive."""
    folder = Path(nanogpt.config.__file__).parent
    return _sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))


def study_schema() -> dict[str, Any]:
    """JSON schema of a study file. Keys of configs are listed, so that editors complete and check them."""
    schema = StudyFile.model_json_schema()
    keys = {"propertyNames": {"enum": sorted(all_keys())}}
    sweep = schema["$defs"]["Sweep"]["properties"]
    for owner in (schema, schema["$defs"]["Variant"]):
        owner["properties"]["config"] |= {"propertyNames": keys["propertyNames"]}
    sweep["grid"] |= keys
    sweep["points"]["items"] |= keys
    sweep["variants"]["additionalProperties"] |= keys
    group = sweep["zip"].pop("items") | keys
    sweep["zip"] = {**sweep["zip"], "anyOf": [group, {"type": "array", "items": group}]}
    sweep["zip"].pop("type", None)
    sweep["filter"] = {**sweep["filter"], "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    for key in ("type", "items"):
        sweep["filter"].pop(key, None)
    kinds = {kind: model.model_json_schema() for kind, model in KINDS.items()}
    schema["properties"]["launcher"] |= {"anyOf": [{"enum": list(kinds)}, *kinds.values()]}
    schema["properties"]["supervise"] |= _with_durations(Supervise.model_json_schema(), "time_limit", "backoff")
    schema["properties"]["plan"] |= _with_durations(PlanSettings.model_json_schema(), "budget", "power")
    lay_sections(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A study", **schema}


def _with_durations(schema: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Amounts may be written with a unit, which the model has already turned into a number."""
    for key in keys:
        field = schema["properties"][key]
        optional = [{"type": "null"}] if field.get("default", 0) is None else []
        field.pop("type", None)
        field["anyOf"] = [{"type": "number"}, {"type": "string"}, *optional]
    return {"properties": schema["properties"], "additionalProperties": False, "type": "object"}


def all_keys() -> list[str]:
    """Every way to name a key of the config: dotted, by a unique ending of that, or as a flag of nanoGPT."""
    return [*known_paths(), *short_names()]
