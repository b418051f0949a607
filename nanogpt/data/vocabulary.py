"""Between text and token ids: the characters of a corpus where it has them, else the ids themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config.data import Data, ZipfMixture
from nanogpt.config.errors import UserError
from nanogpt.config.runtime import Runtime
from nanogpt.data.binfiles import NANOGPT_VOCAB, read_meta
from nanogpt.data.opening import MissingCorpus, corpus_folder

SHOWN = 128  # characters in a message


@dataclass(frozen=True)
class Vocabulary:
    """`characters[i]` is what token i stands for; None where tokens stand for no text, and are written as numbers.

    `size` counts the kinds of tokens, with those that only pad it. `start` is the token that an empty prompt means.
    """

    size: int
    characters: tuple[str, ...] | None = None
    start: int = 0

    @property
    def meaningful(self) -> int:
        """The ids below this stand for something."""
        return self.size if self.characters is None else min(self.size, len(self.characters))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises UserError naming what the vocabulary lacks."""
        if self.characters is None:
            return [self._number(word) for word in text.split()]
        index = {character: position for position, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(index))
        if unknown:
            allowed = repr("".join(sorted(index))) if len(index) <= SHOWN else f"the {len(index)} of the corpus"
            found = " ".join(map(repr, unknown[:5]))
            raise UserError(f"characters outside the vocabulary: {found}; allowed: {allowed}")
        return [index[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; without characters, numbers with a space before each."""
        if self.characters is None:
            return "".join(f" {token}" for token in ids)
        # A padded vocabulary may have ids that no character stands for.
        return "".join(self.characters[token] if token < len(self.characters) else "\ufffd" for token in ids)

    def _number(self, word: str) -> int:
        if not (word.isascii() and word.isdecimal()) or int(word) >= self.size:
            raise UserError(f"{word!r} is no token id: this corpus has no characters, only ids below {self.size}")
        return int(word)


GPT2_TOKENS = 50257  # 50,000 merges, 256 bytes and the end of a text, which also begins one
GPT2 = Vocabulary(GPT2_TOKENS, start=GPT2_TOKENS - 1)


def read_vocabulary(data: Data, runtime: Runtime) -> Vocabulary:
    """The vocabulary of a config's corpus, as its meta file has it (nanoGPT's `itos`, a list or a mapping)."""
    if isinstance(data.corpus, ZipfMixture):
        return Vocabulary(data.corpus.alphabet_size)
    folder = corpus_folder(data.corpus, runtime)
    if not folder.is_dir():
        raise MissingCorpus(f"{folder}: no corpus there, whose vocabulary is needed")
    meta = read_meta(folder)
    itos = meta.get("itos")
    if itos is None:
        # A folder without a meta file has nanoGPT's padded vocabulary: GPT-2's tokens, and ids that stand for nothing.
        return GPT2 if meta["vocab_size"] == NANOGPT_VOCAB else Vocabulary(meta["vocab_size"])
    return Vocabulary(meta["vocab_size"], _characters(folder, itos))


def _characters(folder: Path, itos: Any) -> tuple[str, ...]:
    """The characters in the order of their ids. Raises UserError for ids that are not 0, 1, 2, ..."""
    if isinstance(itos, Mapping):
        by_id = {int(key) if str(key).isdecimal() else key: text for key, text in itos.items()}
        if by_id.keys() != set(range(len(by_id))):
            raise UserError(f"{folder}: meta file: itos: expected the ids 0 to {len(by_id) - 1}, each once")
        itos = [by_id[token] for token in range(len(by_id))]
    if not isinstance(itos, list | tuple) or not all(isinstance(text, str) for text in itos):
        raise UserError(f"{folder}: meta file: itos: expected a list of texts, or a mapping from ids to texts")
    return tuple(itos)
