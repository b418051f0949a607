"""The registry of transformers' layouts: one line in LAYOUTS per architecture that we read and write. No torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nanogpt.config.errors import UserError
from nanogpt.config.ffns import Mixture
from nanogpt.config.model import Model
from nanogpt.config.trunks import FixedLoops, Recurrent, Shared, Stack
from nanogpt.weights.gpt2 import GPT2
from nanogpt.weights.layout import Fields, Layout
from nanogpt.weights.llama import Llama

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (GPT2(), Llama())}


def layout_of(config: Mapping[str, Any], place: str) -> Layout:
    """The layout that a config.json of transformers names. Raises UserError for one that we do not have."""
    kind = config.get("model_type")
    if kind not in LAYOUTS:
        raise UserError(f"{place}: model_type={kind}: only {' and '.join(LAYOUTS)} are read")
    return LAYOUTS[kind]


def model_of(config: Mapping[str, Any], place: str) -> Model:
    """Our model section of a config.json of transformers. Raises UserError for what we do not have."""
    try:
        return Model.model_validate(layout_of(config, place).section(Fields(place, config)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{place}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None


def layout_for(model: Model) -> Layout:
    """The layout that holds a model, unrolled into a stack. Raises UserError naming everything that none has."""
    common = _obstacles(model)
    nearest = min(LAYOUTS.values(), key=lambda layout: len(layout.obstacles(model)))
    found = [*common, *nearest.obstacles(model)]
    if found:
        raise UserError(f"no layout of transformers' holds this model; the nearest is {nearest.title}, but for "
                        + "; ".join(found))  # fmt: skip
    return nearest


def _obstacles(model: Model) -> list[str]:
    """What no layout has."""
    found = []
    if (trunk := _trunk_obstacle(model)) is not None:
        found.append(trunk)
    if isinstance(model.ffn, Mixture):
        found.append(f"ffn={model.ffn.kind}: there are no experts")
    if model.qk_norm:
        found.append("qk_norm=true")
    if model.logit_softcap is not None:
        found.append(f"logit_softcap={model.logit_softcap:g}")
    return found


def _trunk_obstacle(model: Model) -> str | None:
    trunk = model.trunk
    if isinstance(trunk, Stack | Shared):
        return None
    if not isinstance(trunk, Recurrent):
        return f"trunk={trunk.kind}: only stack, shared, and recurrent at a fixed depth can be unrolled"
    if trunk.inject != "none":
        return f"trunk=recurrent with inject={trunk.inject}: what enters each loop has no place in a stack"
    if not isinstance(trunk.depth, FixedLoops):
        return f"trunk=recurrent with depth={trunk.depth.kind}: only fixed loops can be unrolled"
    return None
