"""Files of ranks: OpenAI's .tiktoken, GPT-2's vocab.bpe (HF's merges.txt) and encoder.json (HF's vocab.json)."""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanogpt.config.diskfull import os_problem
from nanogpt.config.errors import UserError
from nanogpt.data.bpe import Ranks, printable_bytes

FORMS = "a .tiktoken file, vocab.bpe (merges.txt) or encoder.json (vocab.json)"
SPECIAL = {"<|endoftext|>", "<|startoftext|>"}  # in encoder.json among the others, though no merge makes them


def read_ranks(file: Path) -> Ranks:
    """The ranks that a file holds, in whichever of the three forms. Raises UserError for a file with none."""
    try:
        return parse_ranks(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(os_problem(error, file)) from None


def parse_ranks(data: bytes, place: str) -> Ranks:
    """The ranks in a file's bytes; `place` names it in a complaint."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{place}: no ranks: it is not a text; expected {FORMS}") from None
    lines = [line.rstrip("\r") for line in text.split("\n")]
    try:
        if text.lstrip()[:1] == "{":
            ranks = _from_vocabulary(text)
        elif _is_tiktoken(next((line for line in lines if line), "")):
            ranks = _from_tiktoken(lines)
        else:
            ranks = from_merges(line for line in lines if not line.startswith("#version"))
        return checked_ranks(ranks)
    except ValueError as error:
        raise UserError(f"{place}: no ranks: {error}; expected {FORMS}") from None


def checked_ranks(ranks: Sequence[bytes]) -> Ranks:
    """The ranks, if texts can be encoded by them. Raises ValueError where a byte is missing or a token comes twice."""
    different = set(ranks)
    lacking = next((byte for byte in range(256) if bytes([byte]) not in different), None)
    if lacking is not None:
        raise ValueError(f"the byte 0x{lacking:02x} is missing")
    if len(different) < len(ranks):
        twice = next(token for rank, token in enumerate(ranks) if token in ranks[:rank])
        raise ValueError(f"{twice!r} comes twice")
    return tuple(ranks)


def _is_tiktoken(line: str) -> bool:
    words = line.split(" ")
    return len(words) == 2 and words[1].isascii() and words[1].isdecimal() and _unbase64(words[0]) is not None


def _unbase64(word: str) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) or None
    except ValueError:
        return None


def _from_tiktoken(lines: Sequence[str]) -> list[bytes]:
    """Lines of a token in base64 and its rank."""
    found = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not _is_tiktoken(line):
            raise ValueError(f"line {number}: {line[:40]!r} is not a token in base64 and its rank")
        word, rank = line.split(" ")
        found[int(rank)] = _unbase64(word) or b""
    return _without_gaps(found)


def _from_vocabulary(text: str) -> list[bytes]:
    """A JSON object from tokens, written in GPT-2's characters for bytes, to their ids."""
    entries = json.loads(text)
    if not all(isinstance(rank, int) for rank in entries.values()):
        raise ValueError("a JSON object, but not from tokens to ids")
    return _without_gaps({rank: unprintable(word) for word, rank in entries.items() if word not in SPECIAL})


def _without_gaps(found: dict[int, bytes]) -> list[bytes]:
    """Tokens in the order of their ids, which have to be 0, 1, 2, ... for tiktoken to merge by them."""
    gap = next((rank for rank in range(len(found)) if rank not in found), None)
    if gap is not None:
        raise ValueError(f"rank {gap} of {len(found)} is missing")
    return [found[rank] for rank in range(len(found))]


def from_merges(lines: Iterable[str]) -> list[bytes]:
    """Ranks from merges in order, `Ġ t` each: the 256 bytes come first, then what each merge makes.

    Raises ValueError for a line that is none, and for a merge of what there is not yet.
    """
    ranks = [bytes([byte]) for byte in printable_bytes().values()]
    known = set(ranks)
    for line in lines:
        if not line:
            continue
        parts = [unprintable(word) for word in line.split(" ")]
        if len(parts) != 2 or not known.issuperset(parts):
            raise ValueError(f"{line[:40]!r} is no merge of two tokens before it")
        ranks.append(parts[0] + parts[1])
        known.add(ranks[-1])
    return ranks


_BYTE_OF = printable_bytes()


def unprintable(word: str) -> bytes:
    """The bytes that GPT-2's characters for bytes stand for. Raises ValueError for other characters."""
    try:
        return bytes(_BYTE_OF[character] for character in word)
    except KeyError as error:
        raise ValueError(f"{word[:40]!r} has the character {error}, which stands for no byte") from None
