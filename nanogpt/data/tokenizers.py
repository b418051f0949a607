"""Tokenizers by name or by file: bytes, characters, OpenAI's encodings and our own; how they lie beside a corpus."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanogpt.config.errors import UserError, did_you_mean
from nanogpt.data.alphabets import Bytes, Characters, TextStream, Tokenizer, train_char
from nanogpt.data.binfiles import read_meta
from nanogpt.data.bpe import Bpe, bpe_size, train_bpe
from nanogpt.data.hftokenizer import read_hf
from nanogpt.data.published import PUBLISHED, MissingRanks, load_published, recognised
from nanogpt.data.ranks import read_ranks
from nanogpt.record import read_json, to_json, write_atomic

__all__ = [
    "NAMES", "TOKENIZER", "Bpe", "Bytes", "Characters", "MissingRanks", "TextStream", "Tokenizer", "bpe_size",
    "load_tokenizer", "read_tokenizer", "recognised", "train_bpe", "train_char", "write_tokenizer",
]  # fmt: skip

TOKENIZER = "tokenizer.json"
FORMAT = 1
KINDS: dict[str, type[Tokenizer]] = {each.kind: each for each in (Bpe, Bytes, Characters)}
SHORT = {"cl100k": "cl100k_base", "o200k": "o200k_base", "r50k_base": "gpt2"}
NAMES = ("char", "byte", *PUBLISHED)


def load_tokenizer(spec: str, *, ranks: Path | None = None) -> Tokenizer:
    """The tokenizer that a name (`byte`, `gpt2`, `cl100k`, `o200k`) or a path says.

    A path is a corpus's folder, its tokenizer.json, a folder of Hugging Face's layout, or a file of ranks: one of an
    unknown encoding cuts texts as GPT-2 does. `ranks` is a file (or folder) with the ranks of a named encoding.
    Raises UserError for anything else, MissingRanks for an encoding whose ranks cannot be had.
    """
    name = SHORT.get(spec, spec)
    if name in PUBLISHED:
        return load_published(name, ranks)
    if ranks is not None:
        raise UserError(f"tokenizer: --ranks {ranks}: {spec} has no ranks; they are of {', '.join(PUBLISHED)}")
    if name == "byte":
        return Bytes()
    if name == "char" or bpe_size(name) is not None:
        raise UserError(
            f"tokenizer: {name} is made from a text: prepare a corpus with it, and name the corpus's folder"
        )
    path = Path(spec).expanduser()
    if path.is_dir():
        return read_tokenizer(path)
    if not path.is_file():
        raise UserError(f"tokenizer: no such tokenizer or file {spec!r}{_nearest(spec)}")
    content = _json_object(path)
    return recognised(read_ranks(path)) if content is None else _from_content(content, path)


def _nearest(spec: str) -> str:
    return did_you_mean(spec, (*NAMES, *SHORT, "bpe4096", "a corpus's folder", "a file of ranks"))


def _json_object(path: Path) -> dict[str, Any] | None:
    """The content of a tokenizer.json, ours or Hugging Face's; None for files of another kind, all of them ranks."""
    if path.suffix != ".json":
        return None
    content = read_json(path)
    return content if _is_ours(content) or _is_hf(content) else None


def _is_ours(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("kind"), str)  # a number where `kind` is a token: GPT-2's vocab.json


def _is_hf(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("model"), dict)


def _from_content(content: Mapping[str, Any], path: Path) -> Tokenizer:
    if _is_hf(content) and not _is_ours(content):
        return _by_its_published_name(read_hf(content, path))
    try:
        if content["format"] != FORMAT:
            raise UserError(f"{path}: written by a newer version of this project (format {content['format']!r})")
        if content["kind"] not in KINDS:
            raise UserError(f"{path}: no kind of tokenizer {content['kind']!r}{did_you_mean(content['kind'], KINDS)}")
        tokenizer = KINDS[content["kind"]].from_facts(content)
        whole = tokenizer.fingerprint == content["fingerprint"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged: not a tokenizer of this project: {error!r}") from None
    if not whole:
        raise UserError(f"{path}: damaged: its tokens are not those that its fingerprint was made of")
    return tokenizer


def _by_its_published_name(tokenizer: Tokenizer) -> Tokenizer:
    """GPT-2 by another's files is GPT-2."""
    if not isinstance(tokenizer, Bpe):
        return tokenizer
    known = recognised(tokenizer.ranks)
    return known if known.fingerprint == tokenizer.fingerprint else tokenizer


def _published_alone(path: Path) -> Tokenizer:
    """An older layout of Hugging Face's does not say how texts are cut: it is told by the ranks, if they are known."""
    tokenizer = recognised(read_ranks(path))
    if tokenizer.name not in PUBLISHED:
        raise UserError(f"{path}: how texts are cut is not told: a tokenizer.json beside it would")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json into a folder, atomically: all that is needed to have this tokenizer again, offline."""
    content = {"format": FORMAT, "kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, **tokenizer.facts()}
    write_atomic(folder / TOKENIZER, to_json(content))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared corpus: its tokenizer.json, else the characters in nanoGPT's meta file.

    Reads Hugging Face's tokenizer.json in the same place, too, or GPT-2's vocab.json or merges.txt. Raises UserError
    where there is none, and for a damaged one.
    """
    path = folder / TOKENIZER if folder.is_dir() else folder
    if path.is_file() or not folder.is_dir():
        return _from_content(read_json(path), path)
    for name in ("vocab.json", "merges.txt"):
        if (folder / name).is_file():
            return _published_alone(folder / name)
    itos = read_meta(folder).get("itos")
    if itos is None:
        raise UserError(f"{folder}: no tokenizer there: neither tokenizer.json nor a meta file with characters")
    return Characters(_characters(folder, itos))


def _characters(folder: Path, itos: Any) -> tuple[str, ...]:
    """nanoGPT's characters in the order of their ids. Raises UserError for ids that are not 0, 1, 2, ..."""
    if isinstance(itos, Mapping):
        by_id = {int(key) if str(key).isdecimal() else key: text for key, text in itos.items()}
        if by_id.keys() != set(range(len(by_id))):
            raise UserError(f"{folder}: meta file: itos: expected the ids 0 to {len(by_id) - 1}, each once")
        itos = [by_id[token] for token in range(len(by_id))]
    if not isinstance(itos, list | tuple) or not all(isinstance(text, str) for text in itos):
        raise UserError(f"{folder}: meta file: itos: expected a list of texts, or a mapping from ids to texts")
    return tuple(itos)
