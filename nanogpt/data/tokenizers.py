"""Tokenizers by name or by file: byte, char, OpenAI's encodings and our own; how they are kept beside a corpus."""

import json
from pathlib import Path

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.data.alphabets import Bytes, Characters, TextStream, Tokenizer, train_char
from nanogpt.data.bpe import Bpe, train_bpe
from nanogpt.data.ranks import PUBLISHED, load_published
from nanogpt.record import read_json, write_atomic

__all__ = [
    "Bpe", "Bytes", "Characters", "TextStream", "Tokenizer", "load_tokenizer", "read_tokenizer", "train_bpe",
    "train_char", "write_tokenizer",
]  # fmt: skip

TOKENIZER = "tokenizer.json"
KINDS: dict[str, type[Tokenizer]] = {each.kind: each for each in (Bpe, Bytes, Characters)}
SHORT = {"cl100k": "cl100k_base", "o200k": "o200k_base"}


def load_tokenizer(spec: str, *, ranks: Path | None = None) -> Tokenizer:
    """The tokenizer that a name or a path says. Raises UserError for others, and without ranks where it needs them."""
    name = SHORT.get(spec, spec)
    if name == "byte":
        return Bytes()
    if name in PUBLISHED:
        return load_published(name, ranks)
    if Path(spec).exists():
        return read_tokenizer(Path(spec))
    raise UserError(f"tokenizer: no such tokenizer {spec!r}{did_you_mean(spec, ('byte', *PUBLISHED))}")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json into a folder, atomically: all that is needed to have this tokenizer again."""
    content = {"format": 1, "kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, **tokenizer.facts()}
    write_atomic(folder / TOKENIZER, json.dumps(content, indent=1) + "\n")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder (or of its tokenizer.json). Raises UserError for a missing or damaged file."""
    path = folder / TOKENIZER if folder.is_dir() else folder
    content = read_json(path)
    try:
        tokenizer = KINDS[content["kind"]].from_facts(content)
        if tokenizer.fingerprint != content["fingerprint"]:
            raise ValueError("its fingerprint does not match")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer of this project: {error}") from None
    return tokenizer
