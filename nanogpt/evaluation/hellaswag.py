"""HellaSwag (arXiv 1905.07830): which of four endings does a model find likeliest, by three customary measures.

| metric            | the ending that is chosen                                     | the text it is scored on      |
|-------------------|---------------------------------------------------------------|-------------------------------|
| `acc`             | the likeliest: largest log-probability                        | lm-evaluation-harness's       |
| `acc_norm`        | the largest log-probability per character of the ending       | lm-evaluation-harness's       |
| `acc_norm_tokens` | the largest log-probability per token of the ending           | build-nanogpt's               |

They are not each other's approximations: GPT-2 with 124M parameters has .2892, .3114 and .2955. The texts differ, too.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanogpt.config import UserError
from nanogpt.evaluation.rows import Pair

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Item:
    """One question. `place` says where it stands, for messages; `fields` are those of the file."""

    place: str
    label: int
    endings: tuple[str, ...]
    fields: Mapping[str, Any]

    def text(self, field: str, asked_by: str) -> str:
        """A field that one of the texts is made of. Raises UserError where it is missing."""
        found = self.fields.get(field)
        if not isinstance(found, str):
            what = "no" if found is None else f"expected a text, got {found!r} for"
            other = next(name for name in TEXTS if name != asked_by)
            raise UserError(f"{self.place}: {what} {field!r}, which the text of {asked_by} needs; see --text {other}")
        return found


@dataclass(frozen=True)
class Choices:
    """An item as it is scored: a pair for each ending, and the endings' lengths in characters."""

    pairs: tuple[Pair, ...]
    characters: tuple[int, ...]


def lm_eval_text(item: Item, encode: Encode) -> Choices:
    """As lm-evaluation-harness's task `hellaswag` makes it, of the activity's label, both contexts and the endings.

    Spaces that end the context go to the ending, and the pair is encoded as one text of which the context's tokens are
    the beginning (its `_encode_pair`). An ending that was nothing but brackets is the space before it.
    """
    label, first, second = (item.text(field, "lm-eval") for field in ("activity_label", "ctx_a", "ctx_b"))
    query = without_brackets(f"{label}: {first} {second.capitalize()}")
    endings = [without_brackets(ending) for ending in item.endings]
    pairs = tuple(encode_pair(encode, query, f" {ending}", item.place) for ending in endings)
    return Choices(pairs, tuple(map(len, endings)))


def without_brackets(text: str) -> str:
    """The artifacts of WikiHow's pages removed, in lm-evaluation-harness's way and order."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def encode_pair(encode: Encode, context: str, continuation: str, place: str) -> Pair:
    """Token ids of a context and its continuation, the spaces between them in the continuation.

    Raises UserError where a tokenizer leaves nothing of one of them.
    """
    bare = context.rstrip()
    whole, before = tuple(encode(context + continuation)), tuple(encode(bare))
    if not before or len(whole) <= len(before):
        raise UserError(f"{place}: {context[-20:]!r} and {continuation[:20]!r} are not two parts in this tokenizer")
    return Pair(whole[: len(before)], whole[len(before) :])


def build_nanogpt_text(item: Item, encode: Encode) -> Choices:
    """As build-nanogpt's hellaswag.py makes it: `ctx` as it is, and each ending after a space, encoded apart."""
    context = tuple(encode(item.text("ctx", "build-nanogpt")))
    if not context:
        raise UserError(f"{item.place}: 'ctx' is empty: there is nothing to predict the endings from")
    pairs = tuple(Pair(context, tuple(encode(f" {ending}"))) for ending in item.endings)
    return Choices(pairs, tuple(map(len, item.endings)))


TEXTS: dict[str, Callable[[Item, Encode], Choices]] = {"lm-eval": lm_eval_text, "build-nanogpt": build_nanogpt_text}
MEASURES = ("acc", "acc_norm", "acc_norm_tokens")
# Which measure on which text has the name alone; every measure on every scored text is in the file of results.
CUSTOMARY = {"acc": "lm-eval", "acc_norm": "lm-eval", "acc_norm_tokens": "build-nanogpt"}


@dataclass(frozen=True)
class Verdict:
    """Of one item under one text: the log-probability of each ending, in nats, and which one each measure chooses."""

    log_probs: tuple[float, ...]
    chosen: Mapping[str, int]


def judge(choices: Choices, log_probs: Sequence[float]) -> Verdict:
    """The choice of each measure; the first of equals, as in both originals.

    Per character an ending without any is never chosen: lm-evaluation-harness divides by 0 to minus infinity.
    """
    tokens = [len(pair.continuation) for pair in choices.pairs]
    values = {
        "acc": list(log_probs),
        "acc_norm": [_per(value, length) for value, length in zip(log_probs, choices.characters, strict=True)],
        "acc_norm_tokens": [_per(value, length) for value, length in zip(log_probs, tokens, strict=True)],
    }
    return Verdict(tuple(log_probs), {measure: each.index(max(each)) for measure, each in values.items()})


def _per(log_prob: float, length: int) -> float:
    return log_prob / length if length else -math.inf
