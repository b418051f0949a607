"""Byte-pair encodings: OpenAI's by their ranks, or trained on a text by HF `tokenizers`; tiktoken runs them all."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import END_OF_TEXT, UNKNOWN, Ids, Tokenizer, as_text

if TYPE_CHECKING:
    import tiktoken

Ranks = tuple[bytes, ...]  # the bytes of token i, which is the i-th in the order of merging

ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # the special token that ends a text, whoever made the encoding
# How a text is cut before merging: what each encoding is defined by, as published in tiktoken (openai_public.py).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Bpe(Tokenizer):
    """Merges of bytes by rank, on pieces of the text that `pattern` cuts; `specials` are names of ids beyond them."""

    kind = "bpe"

    def __init__(self, name: str, ranks: Ranks, pattern: str, specials: Mapping[str, int]) -> None:
        self.name = name
        self.ranks = ranks
        self.pattern = pattern
        self.specials = dict(specials)
        self.n_vocab = max(len(ranks) - 1, *specials.values()) + 1
        self.eot = next((specials[text] for text in ENDS if text in specials), None)
        self._names = {token: text for text, token in specials.items()}

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self.ranks)}
        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=dict(self.specials)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without tiktoken's tables, which another process builds faster than it reads them."""
        return {key: value for key, value in self.__dict__.items() if key != "_encoding"}

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(as_text(text))

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        encoding = self._encoding
        return [encoding.encode_to_numpy(as_text(text), disallowed_special=()) for text in texts]

    def special(self, token: int) -> str | None:
        if token < len(self.ranks):
            return None
        return self._names.get(token, UNKNOWN)  # cl100k_base has ids between its special tokens

    def token_bytes(self, token: int) -> bytes:
        return self.ranks[token] if token < len(self.ranks) else b""

    def facts(self) -> dict[str, Any]:
        ranks = " ".join(base64.b64encode(token).decode() for token in self.ranks)
        return {"name": self.name, "pattern": self.pattern, "specials": self.specials, "ranks": ranks}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Bpe":
        name, pattern, specials = facts["name"], facts["pattern"], facts["specials"]
        ranks = tuple(base64.b64decode(word, validate=True) for word in facts["ranks"].split(" "))
        if not (isinstance(name, str) and isinstance(pattern, str) and isinstance(specials, dict)):
            raise TypeError("expected a name and a pattern, and ids by special token")
        return cls(name, ranks, pattern, specials)


def ranks_sha256(ranks: Ranks) -> str:
    """sha256 of ranks as a .tiktoken file has them: a token in base64 and its rank on each line."""
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    return hashlib.sha256(lines).hexdigest()


LEAST_SIZE = 257  # the bytes and the end of a text: no merges at all
MOST_SIZE = 2**20  # the trainer takes memory for all of them at once, and ends the whole program where there is none


def train_bpe(texts: Iterable[str], vocab_size: int) -> Bpe:
    """A byte-level BPE of `vocab_size` ids: 256 bytes, merges on texts cut as GPT-2 cuts them, and the end of a text.

    The same texts in the same order give the same ids. Raises UserError without the package `tokenizers`, for a size
    below 257 or above 2^20, and for texts that have fewer pairs to merge.
    """
    if vocab_size < LEAST_SIZE:
        raise UserError(f"bpe{vocab_size}: expected at least {LEAST_SIZE}: the 256 bytes and the end of a text")
    if vocab_size > MOST_SIZE:
        raise UserError(f"bpe{vocab_size}: expected at most {MOST_SIZE}")
    try:
        from tokenizers import Tokenizer as HFTokenizer
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError:
        raise UserError(
            f"bpe{vocab_size}: training needs the package tokenizers: pip install 'nanogpt-scaling[data]'"
        ) from None
    trained = HFTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(map(as_text, texts), trainer)
    words = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    if len(words) + 1 < vocab_size:
        raise UserError(
            f"bpe{vocab_size}: the texts have pairs to merge for {len(words) + 1:,} tokens only: "
            f"ask for bpe{len(words) + 1} or fewer, or give more text"
        )
    byte_of = printable_bytes()
    ranks = tuple(bytes(byte_of[character] for character in word) for word, _ in words)
    return Bpe(f"bpe{vocab_size}", ranks, GPT2_PATTERN, {END_OF_TEXT: len(ranks)})


def bpe_size(spec: str) -> int | None:
    """The size that `bpe4096` asks for; None for the name of another tokenizer."""
    digits = spec.removeprefix("bpe")
    is_size = digits != spec and digits.isascii() and digits.isdecimal() and not digits.startswith("0")
    return int(digits) if is_size else None


def printable_bytes() -> dict[str, int]:
    """GPT-2's characters for bytes, in the order of their ids: itself where it prints, else the next from U+0100."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
