"""Between text and token ids: the characters of a corpus where it has them, else the ids themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanogpt.config.data import Data, ZipfMixture
from nanogpt.config.errors import UserError
from nanogpt.config.runtime import Runtime
from nanogpt.data.binfiles import read_meta
from nanogpt.data.corpora import corpus_folder


@dataclass(frozen=True)
class Vocabulary:
    """`characters[i]` is what token i stands for; None where tokens stand for no text, and are written as numbers."""

    size: int
    characters: tuple[str, ...] | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises UserError naming what the vocabulary lacks."""
        if self.characters is None:
            return [self._number(word) for word in text.split()]
        index = {character: position for position, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(index))
        if unknown:
            raise UserError(f"characters outside the vocabulary: {' '.join(map(repr, unknown[:5]))}")
        return [index[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; without characters, numbers with a space before each."""
        if self.characters is None:
            return "".join(f" {token}" for token in ids)
        # A padded vocabulary may have ids that no character stands for.
        return "".join(self.characters[token] if token < len(self.characters) else "\ufffd" for token in ids)

    def _number(self, word: str) -> int:
        if not word.isdecimal() or int(word) >= self.size:
            raise UserError(f"{word!r} is no token id: this corpus has no characters, only ids below {self.size}")
        return int(word)


def read_vocabulary(data: Data, runtime: Runtime) -> Vocabulary:
    """The vocabulary of a config's corpus, as its meta file has it (nanoGPT's `itos`, a list or a mapping)."""
    if isinstance(data.corpus, ZipfMixture):
        return Vocabulary(data.corpus.alphabet_size)
    meta = read_meta(corpus_folder(data.corpus, runtime))
    itos = meta.get("itos")
    if itos is None:
        return Vocabulary(meta["vocab_size"])
    if isinstance(itos, Mapping):
        itos = [text for _, text in sorted(itos.items(), key=lambda item: int(item[0]))]
    return Vocabulary(meta["vocab_size"], tuple(itos))
