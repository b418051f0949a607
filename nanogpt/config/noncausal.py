"""Routings by which logits would depend on later tokens: whoever asks for one by any name is told why there is none."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LATER = "a position would see later tokens, which a causal language model must not"
_SLOTS = (
    f"each slot of Soft MoE (arXiv 2308.00951) mixes all tokens of the sequence: {_LATER}; soft_moe mixes per token"
)
_SMEAR = f"SMEAR (arXiv 2306.03745) merges experts by the routing of the whole sequence: {_LATER}; use soft_moe"
_CHOICE = f"under expert choice (arXiv 2202.09368) experts pick among all tokens of a batch: {_LATER}; use topk_moe"

_PARTS = {"slot": _SLOTS, "smear": _SMEAR, "softmerg": _SMEAR, "expertchoice": _CHOICE}
_ROUTING = {"router", "routing", "mode", "merge", "merging"}  # keys whose value `sequence` means SMEAR
_NAME = re.compile(r"[\w\s-]+")  # a path or a sentence names no routing


def why_non_causal(section: Any) -> str | None:
    """The refusal of the first key or value, at any depth, that names a routing which looks ahead; None without one."""
    for key, value in _pairs("", section):
        for word in (key, value):
            if reason := _of_word(word):
                return f"'{word}' is refused: {reason}"
        if isinstance(key, str) and isinstance(value, str) and (reason := _of_pair(key.lower(), value.lower())):
            return f"'{key}: {value}' is refused: {reason}"
    return None


def refuse_non_causal(section: Any) -> Any:
    """A validator that lets everything else through as it is."""
    if reason := why_non_causal(section):
        raise ValueError(reason)
    return section


def _pairs(key: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key with its value, outer ones first; an item of a list goes by the list's key."""
    yield key, value
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _pairs(name, child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _pairs(key, child)


def _of_word(word: Any) -> str | None:
    if not isinstance(word, str) or not _NAME.fullmatch(word):
        return None
    pieces = re.split(r"[\s_-]+", word.lower())
    if "ec" in pieces:
        return _CHOICE
    joined = "".join(pieces)  # expertChoice, Expert Choice and expert-choice alike
    return next((reason for part, reason in _PARTS.items() if part in joined), None)


def _of_pair(key: str, value: str) -> str | None:
    if (key, value) == ("choice", "expert"):
        return _CHOICE
    return _SMEAR if key in _ROUTING and value == "sequence" else None
