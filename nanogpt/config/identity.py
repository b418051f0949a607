"""Canonical form and id of a config: what two runs must share to be the same run."""

import hashlib
import json
from typing import Any

from nanogpt.config.run import Config
from nanogpt.config.training import HORIZONS

ID_DIGITS = 12
# Two WSD runs that differ in nothing but their horizons and these train identically until the first one cools down.
COOLDOWN_KEYS = ("decay_iters", "cooldown", "min_lr")

# A field added after ids were first published stands here with the value that older runs had, under its dotted name.
# It is left out of the canonical form while it has that value, so that old ids survive.
LATER_FIELDS: dict[str, Any] = {"optimizer.ns_precision": "bf16"}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def identity(config: Config) -> dict[str, Any]:
    """The identity part of a validated config with every default written out.

    The micro-batch enters only where it changes the result: dropout draws one mask per micro-batch.
    A `bin` corpus is known by its content, not by its path.
    """
    tree = config.model_dump(mode="json", exclude={"runtime"})
    tree["data"]["corpus"].pop("path", None)
    if config.model.dropout > 0:
        tree["micro_batch_size"] = config.micro_batch_size
    for dotted, old in LATER_FIELDS.items():
        _drop_if_equal(tree, dotted.split("."), old)
    return tree


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
