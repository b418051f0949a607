"""Hugging Face's tokenizer.json: byte-level BPE and what we wrote read from it, and our tokenizers written as one.

The layout is that of the package `tokenizers`, version 1.0 of its JSON. It has its merges as pairs; by ranks alone, as
tiktoken has them, a token's pair is what merging its bytes by all smaller ranks leaves.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import END_OF_TEXT, Bytes, Characters, Tokenizer
from nanogpt.data.bpe import GPT2_PATTERN, Bpe, Ranks, printable_bytes
from nanogpt.data.published import CL100K_PATTERN, O200K_PATTERN
from nanogpt.data.ranks import checked_ranks, unprintable
from nanogpt.record import to_json, write_atomic

# The same patterns without possessive quantifiers, which Hugging Face's regular expressions write otherwise.
PLAIN = {
    CL100K_PATTERN: (
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
        r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
    ),
    O200K_PATTERN: O200K_PATTERN,
}
CUTS = {plain: pattern for pattern, plain in PLAIN.items()}
_CHARACTER_OF = {byte: character for character, byte in printable_bytes().items()}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def read_hf(content: Mapping[str, Any], place: Path) -> Tokenizer:
    """The byte-level BPE that a tokenizer.json holds, or one of ours that no merges can express, as `write_hf` has it.

    Raises UserError naming what no ranks can do.
    """
    for ours in (Bytes(), *_characters(content)):
        if hf_content(ours) == content:
            return ours
    try:
        return _bpe(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: not a tokenizer.json of Hugging Face's: {error!r}") from None
    except ValueError as error:
        raise UserError(f"{place}: only byte-level BPE is read from Hugging Face's layout, and {error}") from None


def _characters(content: Mapping[str, Any]) -> Iterator[Characters]:
    model = content["model"]
    vocabulary = model.get("vocab") if model.get("type") == "WordLevel" else None
    if isinstance(vocabulary, dict) and all(isinstance(token, int) for token in vocabulary.values()):
        yield Characters(sorted(vocabulary, key=vocabulary.__getitem__))


def _bpe(content: Mapping[str, Any]) -> Bpe:
    model = content["model"]
    kind = model.get("type", "BPE" if "merges" in model else "nameless")  # older files do not say
    if kind != "BPE":
        raise ValueError(f"this is a {kind} model")
    if content.get("normalizer"):
        raise ValueError(f"this changes texts first ({content['normalizer'].get('type')})")
    pattern = _pattern(content.get("pre_tokenizer") or {})
    specials = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    ids = {token: unprintable(word) for word, token in model["vocab"].items() if word not in specials}
    if set(ids) != set(range(len(ids))):
        raise ValueError("its tokens are not numbered 0, 1, 2, ... apart from special ones")
    ranks = checked_ranks([ids[token] for token in range(len(ids))])
    _check_merges(model["merges"], ranks)
    return Bpe(f"bpe{len(ids) + len(specials)}", ranks, pattern, specials)


def _pattern(cutting: Mapping[str, Any]) -> str:
    """How texts are cut: GPT-2's way by ByteLevel itself, or one of the published ways by a Split before it."""
    steps = cutting["pretokenizers"] if cutting.get("type") == "Sequence" else [cutting]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise ValueError("this one cuts texts in another way")
    if len(steps) == 1 and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    if len(steps) == 2 and steps[0].get("type") == "Split" and not steps[1].get("use_regex", True):
        found = steps[0]["pattern"].get("Regex")
        if found in CUTS:
            return CUTS[found]
    raise ValueError("this one cuts texts in another way")


def _check_merges(merges: list[Any], ranks: Ranks) -> None:
    """Raises ValueError unless the merges are those that tiktoken does by the ranks: each token by one, in order."""
    pairs = [tuple(map(unprintable, merge.split(" ") if isinstance(merge, str) else merge)) for merge in merges]
    if pairs != merges_of(ranks):
        raise ValueError("the merges of this one are not in the order of its ids")


def write_hf(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers' AutoTokenizer makes the same ids."""
    end = {} if tokenizer.eot is None else dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **end,
    }
    write_atomic(folder / "tokenizer.json", to_json(hf_content(tokenizer)))
    write_atomic(folder / "tokenizer_config.json", to_json(settings))


def hf_content(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json that gives the ids of one of our tokenizers.

    Raises UserError for ranks that no merges give: a trained BPE has none such, a file of ranks may.
    """
    if isinstance(tokenizer, Bpe):
        return _of_bpe(tokenizer)
    if isinstance(tokenizer, Bytes):
        vocabulary = {_CHARACTER_OF[byte]: byte for byte in range(255)} | {END_OF_TEXT: 255}
        return _content(_bpe_model(vocabulary, []), _BYTES | {"use_regex": False}, _BYTES, {END_OF_TEXT: 255})
    assert isinstance(tokenizer, Characters)
    vocabulary = {character: token for token, character in enumerate(tokenizer.characters)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "\ufffd"}
    each = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return _content(model, each, {"type": "Fuse"}, {})


def _of_bpe(tokenizer: Bpe) -> dict[str, Any]:
    try:
        merges = [[_written(part) for part in pair] for pair in merges_of(tokenizer.ranks)]
    except ValueError as error:
        raise UserError(f"{tokenizer.name}: cannot be written in Hugging Face's layout: {error}") from None
    vocabulary = {_written(token): rank for rank, token in enumerate(tokenizer.ranks)} | tokenizer.specials
    if tokenizer.pattern == GPT2_PATTERN:
        cutting: dict[str, Any] = _BYTES | {"use_regex": True}
    else:
        pattern = {"Regex": PLAIN.get(tokenizer.pattern, tokenizer.pattern)}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, _BYTES | {"use_regex": False}]}
    return _content(_bpe_model(vocabulary, merges), cutting, _BYTES | {"use_regex": True}, tokenizer.specials)


def _bpe_model(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    off = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **off, **flags, "vocab": vocabulary, "merges": merges}


def _content(
    model: dict[str, Any], cutting: Mapping[str, Any], decoder: Mapping[str, Any], specials: Mapping[str, int]
) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": token, "content": text, **plain} for text, token in specials.items()]
    parts = {"normalizer": None, "pre_tokenizer": cutting, "post_processor": None, "decoder": decoder}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts, "model": model}


def _written(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def merges_of(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """The pair that each token beyond the bytes is merged from, in the order of the ranks.

    Raises ValueError for a token that its own bytes never become, because merges of smaller rank come in between.
    """
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    pairs = []
    for rank, token in enumerate(ranks):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            merged = [rank_of.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            at = min(range(len(merged)), key=merged.__getitem__)
            if merged[at] >= rank:
                raise ValueError(f"no merge of two earlier tokens makes {token!r}")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        pairs.append((parts[0], parts[1]))
    return pairs
