"""The state that a run starts from when it starts from weights: read, checked, and fitted to its model."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanogpt import checkpoint
from nanogpt.config import Config, UserError
from nanogpt.config.model import Model
from nanogpt.config.parametrization import Parametrization
from nanogpt.config.weights import Weights
from nanogpt.configfile import load_layers
from nanogpt.data.opening import CorpusFacts
from nanogpt.model import build_model, model_rules
from nanogpt.weights.filling import conflict, source_sections
from nanogpt.weights.layouts import layout_of, model_of
from nanogpt.weights.place import Place, find
from nanogpt.weights.tensors import read_tensors
from nanogpt.weights.vocabulary import check_tokenizer
from parametrization import Rules

# What of the rules is part of the function that the weights were trained to be, and what a person sets it by.
MULTIPLIERS = {
    "input_multiplier": "input_multiplier",
    "residual_multiplier": "base_n_layer and base_loops",
    "output_multiplier": "base_n_embd and output_multiplier",
    "attention_scale": "base_head_size",
}


def check_weights(config: Config, corpus: CorpusFacts) -> dict[str, str]:
    """The sha256 of each file of the weights that a run starts from, by path. Raises UserError where they do not fit.

    Reads no tensor: what can be told from shapes, rules and tokenizers.
    """
    assert isinstance(config.init_from, Weights)
    place = _found(config.init_from)
    _check_function(config, place)
    if place.kind == "hf":
        check_tokenizer(place, corpus)
    return {str(path): digest for path, digest in zip(place.files(), place.hashes().values(), strict=True)}


def initial_state(config: Config) -> dict[str, Tensor]:
    """The state dict that a run of a resolved config starts with.

    Raises UserError for weights that are not those of the config (by their sha256), that are damaged, and that do not
    fit the model.
    """
    assert isinstance(config.init_from, Weights)
    place = _found(config.init_from)
    _check_function(config, place)
    known, now = config.init_from.sha256, place.hash_again()
    if known is not None and now != known:
        raise UserError(
            f"init_from: {place.name}: the weights have changed: their sha256 is {now[:12]}, the config was made for "
            f"{known[:12]}; put the old ones back, or take out init_from.sha256 for a new run"
        )
    state = _read(place)
    return fitted(state, config, place.name)


def _found(asked: Weights) -> Place:
    try:
        return find(asked.weights)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None


def _run_tree(path: Any) -> Mapping[str, Any]:
    return load_layers(path).tree


def _read(place: Place) -> dict[str, Tensor]:
    """The tensors by our names, all that the source has."""
    if place.kind == "run":
        assert place.checkpoint is not None
        return checkpoint.load_file(place.checkpoint)["model"]
    return read_hf(place)


def read_hf(place: Place) -> dict[str, Tensor]:
    """The tensors of weights that transformers saved, by our names, in float32."""
    config, where = place.described(), str(place.config)
    found = layout_of(config, where).to_ours(read_tensors(place.files()), model_of(config, where), place.name)
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def fitted(state: dict[str, Tensor], config: Config, name: str) -> dict[str, Tensor]:
    """The state cut to a shorter context and grown to a larger vocabulary. Raises UserError for any other difference.

    New tokens get the mean of all: a zero would stand out, since trained logits lie far below 0.
    """
    wanted = build_model(config, "meta").state_dict()
    found = dict(state)
    for table in ("embedding.weight", "head.weight"):
        if table in found and table in wanted and len(found[table]) < len(wanted[table]):
            more = len(wanted[table]) - len(found[table])
            found[table] = torch.cat((found[table], found[table].mean(0, keepdim=True).expand(more, -1)))
    if "position.weight" in found and "position.weight" in wanted:
        found["position.weight"] = found["position.weight"][: len(wanted["position.weight"])].clone()
    for key in sorted({*wanted, *found}):
        ours, theirs = (tuple(each[key].shape) if key in each else "none" for each in (wanted, found))
        if ours != theirs:
            raise UserError(f"init_from: {name}: {key}: the model has the shape {ours}, the weights {theirs}")
    return found


def _check_function(config: Config, place: Place) -> None:
    """Raises UserError unless the model computes with these weights what they were trained to compute."""
    if (problem := conflict(config.model, place, _run_tree)) is not None:
        raise UserError(f"model.{problem[0]}: {problem[1]}")
    sections = source_sections(place, _run_tree)
    theirs = Model.model_validate(sections["model"])
    there = model_rules(theirs, Parametrization.model_validate(sections.get("parametrization", {})))
    _check_multipliers(model_rules(config.model, config.parametrization), there, config, place.name)


def _check_multipliers(ours: Rules, theirs: Rules, config: Config, name: str) -> None:
    for multiplier, setting in MULTIPLIERS.items():
        here, there = getattr(ours, multiplier), getattr(theirs, multiplier)
        if not math.isclose(here, there, rel_tol=1e-9):
            raise UserError(
                f"parametrization.mode={config.parametrization.mode}: its {multiplier.replace('_', ' ')} is "
                f"{here:.6g}, and the weights of {name} were trained with {there:.6g}: they would be another function; "
                f"take the base shape of the weights ({setting}), or their own parametrization"
            )
