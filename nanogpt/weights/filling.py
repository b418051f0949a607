"""The `model` section of a run that starts from weights: theirs, and what a person may change of it. No torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError
from nanogpt.config.model import Model
from nanogpt.config.weights import asked_weights
from nanogpt.weights.layouts import model_of
from nanogpt.weights.place import Place, find

ReadRun = Callable[[Path], Mapping[str, Any]]  # a run's config.yaml as plain data
# What changes no tensor's meaning: dropout has none, and the others are checked by size.
FREE = ("dropout", "block_size", "vocab_size")


def source_sections(place: Place, read_run: ReadRun) -> dict[str, Any]:
    """The sections that come with weights: `model`, and for a run of ours its `parametrization`."""
    if place.kind == "hf":
        assert place.config is not None
        return {"model": model_of(place.described(), str(place.config)).model_dump(mode="json")}
    if place.config is None:
        raise UserError(f"{place.name}: no config.yaml beside it, and not in a run's attempts; name the run's folder")
    tree = read_run(place.config)
    return {name: dict(tree[name]) for name in ("model", "parametrization") if name in tree}


def fill_in(tree: dict[str, Any], read_run: ReadRun) -> Place | None:
    """Complete the sections of a config by those of the weights that it starts from; None where it needs nothing.

    A config that names the weights' sha256 and its whole model, as that of a run does, needs nothing: it can be read
    where the weights are no longer there.
    """
    asked = asked_weights(tree.get("init_from"))
    given = tree.get("model")
    given = dict(given) if isinstance(given, Mapping) else {}
    if asked is None or (asked.sha256 is not None and set(given) >= set(Model.model_fields)):
        return None
    place = find(asked.weights)
    theirs = source_sections(place, read_run)
    tree["model"] = {**theirs["model"], **{key: value for key, value in given.items() if value != "auto"}}
    if "parametrization" in theirs:
        tree.setdefault("parametrization", theirs["parametrization"])
    return place


def conflict(model: Model, place: Place, read_run: ReadRun) -> tuple[str, str] | None:
    """The first key of a model that the weights contradict, and how; None where they fit."""
    theirs = Model.model_validate(source_sections(place, read_run)["model"])
    for name in Model.model_fields:
        ours, there = _effective(model, name), _effective(theirs, name)
        if name not in FREE and ours != there:
            return name, f"{_shown(ours)}, but the weights of {place.name} have {_shown(there)}; take it out"
    if model.position == "learned" and model.block_size > theirs.block_size:
        return "block_size", (
            f"{model.block_size}, but the weights of {place.name} have {theirs.block_size} positions; "
            "it can be cropped, not grown"
        )
    if (
        isinstance(model.vocab_size, int)
        and isinstance(theirs.vocab_size, int)
        and model.vocab_size < theirs.vocab_size
    ):
        return "vocab_size", (
            f"{model.vocab_size}, but the weights of {place.name} have {theirs.vocab_size} tokens; take it out"
        )
    return None


def _effective(model: Model, name: str) -> Any:
    """A setting with its default applied: 12 key/value heads are what none means with 12 heads."""
    if name == "n_kv_head":
        return model.kv_heads
    if name == "ffn":
        return model.ffn.model_copy(update={"hidden": model.ffn_hidden}).model_dump(exclude={"multiple_of"})
    return getattr(model, name)


def _shown(value: Any) -> str:
    value = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
