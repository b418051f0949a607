"""The keys of a study's YAML file, and its `sizes:`: the same question at other scales, each a layer over the rest."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.grid import Sweep
from nanogpt.config import UserError, did_you_mean
from nanogpt.config.keys import arms


class Variant(BaseModel):
    """What one size says otherwise than the study: whatever it leaves out stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hypothesis: Annotated[str, Field(min_length=1)] | None = Field(None, description="What is expected at this size.")
    limits: str | None = Field(None, description="What can not be seen at this size.")
    config: dict[str, Any] = Field({}, description="Settings of all runs, merged over the study's.")
    sweep: Sweep = Field(Sweep(), description="Parts given here replace those of the study's sweep.")
    optimum: dict[str, Any] = Field({}, description="Keys given here replace those of the study's `optimum:`.")
    claims: list[str] | None = Field(None, description="What is expected at this size, instead of the study's.")


class StudyFile(BaseModel):
    """The keys of a study's YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Annotated[str, Field(min_length=1)] = Field(description="What the study wants to know.")
    hypothesis: Annotated[str, Field(min_length=1)] = Field(description="What is expected, said before it runs.")
    limits: str = Field("", description="What the study can not show; the report says it under the hypothesis.")
    name: str | None = Field(None, description="Name of the results folder; default: the file's name.")
    base: str | None = Field(None, description="Config file all runs start from, relative to this file.")
    config: dict[str, Any] = Field({}, description="Settings of all runs, merged over the base.")
    sweep: Sweep = Field(Sweep(), description="What varies from run to run.")
    fit: dict[str, Any] | None = Field(None, description="The law to fit; see docs/laws.md.")
    optimum: dict[str, Any] | None = Field(None, description="Which factor's best value is looked for, per size.")
    approaches: dict[str, Any] | None = Field(None, description="Compute-optimal sizes by three approaches.")
    compare: dict[str, Any] | None = Field(None, description="Variants ranked by compute multiplier over a baseline.")
    claims: list[str] = Field([], description="What is expected, in sentences that can be checked; see docs/claims.md.")
    report: dict[str, Any] = Field({}, description="Figures and axes of the report.")
    launcher: Any = Field(None, description="What starts the workers: a name, or `kind` and its settings.")
    supervise: Any = Field(None, description="Time limits, retries, and when failures end the study.")
    plan: Any = Field(None, description="Budget, price, power, and what is expected of the law, for `plan`.")
    sizes: dict[str, Variant] = Field({}, description="The same study at other sizes, by name, for `--size`.")


def variant_named(study: StudyFile, name: str | None, place: str) -> Variant:
    """The size that is asked for, an empty one for None. Raises UserError with the nearest name."""
    if name is None:
        return Variant()
    if name not in study.sizes:
        known = did_you_mean(name, study.sizes) or "; this study has no `sizes:`"
        raise UserError(f"{place}: --size: no such size {name!r}{known}")
    return study.sizes[name]


def with_variant(study: StudyFile, variant: Variant) -> StudyFile:
    """The keys of a study with a size's laid over them, but for `config`, which stays a layer of its own."""
    said = ("hypothesis", "limits", "claims")
    words = {key: getattr(variant, key) for key in said if getattr(variant, key) is not None}
    parts = {name: getattr(variant.sweep, name) for name in variant.sweep.model_fields_set}
    optimum = {**(study.optimum or {}), **variant.optimum} or None
    return study.model_copy(update={**words, "sweep": study.sweep.model_copy(update=parts), "optimum": optimum})


def explain(error: ValidationError, place: Callable[..., str]) -> str:
    """The first problem of a study file in one line."""
    problem = error.errors(include_url=False)[0]
    path, limits = tuple(str(part) for part in problem["loc"]), problem.get("ctx", {})
    if problem["type"] == "missing" and path[-1].isdigit():  # pydantic names the place of a value, not the list
        path = path[:-1]
        return f"{place(*path)}: {'.'.join(path)}: expected more values, got {problem['input']!r}"
    messages = {
        "extra_forbidden": f"no such key{did_you_mean(path[-1], _keys_beside(path))}",
        "value_error": str(limits.get("error", "")),
        "literal_error": f"no such choice {problem['input']!r}{_nearest_choice(problem)}",
        "missing": "is missing; a study says it before it runs",
        "too_long": f"expected at most {limits.get('max_length')} values, got {problem['input']!r}",
        "too_short": f"expected at least {limits.get('min_length')} values, got {problem['input']!r}",
        "model_type": f"expected a mapping of settings, got {problem['input']!r}",
        "string_too_short": "is empty; a study says it before it runs",
    }
    fallback = f"{problem['msg'].replace('Input should be', 'expected')}, got {problem['input']!r}"
    return f"{place(*path)}: {'.'.join(path)}: {messages.get(problem['type'], fallback)}"


def _nearest_choice(problem: Mapping[str, Any]) -> str:
    return did_you_mean(problem["input"], re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", "")))


def _keys_beside(path: Sequence[str]) -> list[str]:
    """The keys that may stand where the last one of `path` does."""
    section: type[BaseModel] = StudyFile
    for key in path[:-1]:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if key in fields:  # a mapping from a person's own keys to sections, as `space` is, counts as one of them
            parts = (fields[key].annotation, *get_args(fields[key].annotation))
            section = next((arm for part in parts for arm in arms(part)), section)
    return [field.alias or name for name, field in section.model_fields.items()]
