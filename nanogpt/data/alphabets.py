"""What a tokenizer is, and the two whose tokens are an alphabet: the characters of a text, and bytes."""

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.config.identity import canonical_json

END_OF_TEXT = "<|endoftext|>"  # how the token that separates texts is written
UNKNOWN = "\ufffd"  # what an id that stands for nothing is written as
SHOWN = 128  # characters in a message
Ids = list[int] | NDArray[np.uint32]


class Tokenizer(ABC):
    """Between text and token ids. `decode(encode(text)) == text` for every text that the tokenizer can write.

    Text is what UTF-8 can hold: two surrogates that belong together are one character, a lone one becomes U+FFFD.
    `kind` names the class in tokenizer.json, `name` the tokenizer (`gpt2`, `bpe4096`). Ids lie below `n_vocab`; `eot`
    is the id that stands between texts, None where there is none, and never the encoding of any text.
    """

    kind: ClassVar[str]
    name: str
    n_vocab: int
    eot: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, whatever it says: `<|endoftext|>` in it is text, too."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for: a part of a character perhaps; none for a special or unknown id."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """All that determines the ids, as plain JSON: enough to make the tokenizer again."""

    @classmethod
    @abstractmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer that `facts` describes. Raises KeyError, TypeError or ValueError for others."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that determines the ids; equal tokenizers under two names have one."""
        facts = {key: value for key, value in self.facts().items() if key != "name"}
        return hashlib.sha256(canonical_json({"kind": self.kind, **facts}).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """The ids of each text, in order; in the caller's thread alone, so that processes may share the work."""
        return [self.encode(text) for text in texts]

    def special(self, token: int) -> str | None:
        """How a special token is written; None for all others."""
        return END_OF_TEXT if token == self.eot else None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special tokens are written by name, bytes that are no UTF-8 and unknown ids as U+FFFD."""
        stream = TextStream(self)
        return "".join([stream.push(int(token)) for token in ids]) + stream.flush()


class TextStream:
    """Text from tokens one at a time: a character whose bytes several tokens share appears with the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes."""
        special = self._tokenizer.special(token)
        if special is not None:
            return self.flush() + special
        if not 0 <= token < self._tokenizer.n_vocab:
            return self.flush() + UNKNOWN
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What was held back: U+FFFD for the beginning of a character that never ended."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def as_text(text: str) -> str:
    """The text with surrogate pairs joined, and lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8. The byte 0xFF occurs in no UTF-8 (RFC 3629, section 1), so it ends a text."""

    kind = "byte"
    name = "byte"
    n_vocab = 256
    eot = 255

    def encode(self, text: str) -> list[int]:
        return list(as_text(text).encode())

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        return [np.frombuffer(as_text(text).encode(), dtype=np.uint8).astype(np.uint32) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 255 else b""

    def facts(self) -> dict[str, Any]:
        return {"n_vocab": self.n_vocab, "eot": self.eot}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Bytes":
        return cls()


class Characters(Tokenizer):
    """`characters[i]` is what token i stands for. Only texts of these characters can be written."""

    kind = "char"
    name = "char"
    eot = None

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self.n_vocab = len(self.characters)
        self._index = {character: token for token, character in enumerate(self.characters)}
        self._bytes = tuple(as_text(character).encode() for character in self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError naming the characters that the vocabulary lacks."""
        text, index = as_text(text), self._index
        try:
            return [index[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - set(index))
        allowed = repr("".join(sorted(index))) if len(index) <= SHOWN else f"the {len(index)} of the corpus"
        found = " ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UserError(f"characters outside the vocabulary: {found}; allowed: {allowed}")

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token < self.n_vocab else b""

    def facts(self) -> dict[str, Any]:
        return {"characters": list(self.characters)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Characters":
        characters = facts["characters"]
        if not isinstance(characters, list) or not all(isinstance(text, str) for text in characters):
            raise ValueError("characters: expected a list of texts")
        return cls(characters)


def train_char(texts: Iterable[str]) -> Characters:
    """The characters of all texts, in the order of their code points, as nanoGPT has them."""
    found: set[str] = set()
    for text in texts:
        found.update(as_text(text))
    if not found:
        raise UserError("char: the texts are empty: there are no characters to make a vocabulary of")
    return Characters(sorted(found))
