"""Canonical form and id of a config: what two runs must share to be the same run."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nanogpt.config.run import Config
from nanogpt.config.training import HORIZONS

ID_DIGITS = 12
# Two WSD runs that differ in nothing but their horizons and these train identically until the first one cools down.
COOLDOWN_KEYS = ("decay_iters", "cooldown", "min_lr")

# A field added after ids were first published stands here with the value that older runs had, under its dotted name.
# It is left out of the canonical form while it has that value, so that old ids survive.
LATER_FIELDS: dict[str, Any] = {
    "optimizer.ns_precision": "bf16",
    "parametrization.base_loops": None,
    "data.sampling": "random",
}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def identity(config: Config) -> dict[str, Any]:
    """The identity part of a validated config with every default written out.

    The micro-batch enters only where it changes the result, see `why_cut_matters`.
    A `bin` corpus is known by its content, not by its path, nor by the tokenizer that helped to find it; weights to
    start from by their sha256.
    """
    tree = config.model_dump(mode="json", exclude={"runtime"})
    tree["data"].pop("tokenizer")
    for part in tree["data"]["corpus"].get("parts", []):
        part["corpus"].pop("path", None)
    tree["data"]["corpus"].pop("path", None)
    if config.init_from != "scratch":
        tree["init_from"].pop("weights")
    if why_cut_matters(tree["model"]) is not None:
        tree["micro_batch_size"] = config.micro_batch_size
    for dotted, old in LATER_FIELDS.items():
        _drop_if_equal(tree, dotted.split("."), old)
    return tree


def why_cut_matters(model: Mapping[str, Any]) -> str | None:
    """What makes a result depend on how its batches are cut into micro-batches, in the `model` section of a run.

    None where nothing does: then a micro-batch that is too large for the memory may be halved.
    """
    ffn = model.get("ffn") or {}
    if model.get("dropout"):
        return "dropout"  # draws one mask per micro-batch
    if ffn.get("capacity_factor") is not None:
        return "ffn.capacity_factor"  # is a share of a micro-batch
    if ffn.get("balance") == "aux" and ffn.get("aux_scope") == "micro_batch":
        return "ffn.aux_scope=micro_batch"  # means over a micro-batch, whose product is no mean over the batch
    return None


def trunk_identity(tree: dict[str, Any]) -> dict[str, Any]:
    """What WSD runs must have in common to share the steps before their cool-downs, from an identity part."""
    train = {key: value for key, value in tree["train"].items() if key not in HORIZONS}
    schedule = {key: value for key, value in tree["schedule"].items() if key not in COOLDOWN_KEYS}
    return {**tree, "train": train, "schedule": schedule}


def _drop_if_equal(tree: dict[str, Any], path: list[str], old: Any) -> None:
    for key in path[:-1]:
        tree = tree.get(key, {})
    if path[-1] in tree and tree[path[-1]] == old:
        del tree[path[-1]]


def run_id(config: Config) -> str:
    """First 12 hex digits of the sha256 of the canonical identity. Only meaningful for a resolved config."""
    return hashlib.sha256(canonical_json(identity(config)).encode()).hexdigest()[:ID_DIGITS]
