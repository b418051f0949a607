"""What a model's token ids mean: the text of a corpus's tokenizer, or only numbers where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config.data import Data, ZipfMixture
from nanogpt.config.errors import UserError
from nanogpt.config.runtime import Runtime
from nanogpt.data.binfiles import GPT2_VOCAB, NANOGPT_VOCAB, read_meta
from nanogpt.data.opening import MissingCorpus, corpus_folder
from nanogpt.data.ranks import read_ranks
from nanogpt.data.tokenizers import (
    TOKENIZER,
    MissingRanks,
    TextStream,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    recognised,
)


@dataclass(frozen=True)
class Vocabulary:
    """Token ids below `size` and what they mean: without a `tokenizer` nothing, and they are written as numbers.

    `size` counts the kinds of tokens, with those that only pad it. `eot` is the id that stands between texts where no
    tokenizer tells. `note` says why there is no tokenizer where a person would expect one.
    """

    size: int
    tokenizer: Tokenizer | None = None
    eot: int | None = None
    note: str | None = None

    @property
    def meaningful(self) -> int:
        """The ids below this stand for something."""
        return self.size if self.tokenizer is None else min(self.size, self.tokenizer.n_vocab)

    @property
    def start(self) -> int:
        """The token that an empty prompt means: the end of the text before, where texts have one."""
        eot = self.eot if self.tokenizer is None else self.tokenizer.eot
        return 0 if eot is None or eot >= self.size else eot

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises UserError naming what the vocabulary lacks."""
        if self.tokenizer is not None:
            return self.tokenizer.encode(text)
        return [self._number(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; without a tokenizer, numbers with a space before each."""
        stream = self.stream()
        return "".join([stream.push(int(token)) for token in ids]) + stream.flush()

    def stream(self) -> "TextStream | NumberStream":
        """For ids that come one at a time: whole characters as soon as they are complete."""
        return NumberStream() if self.tokenizer is None else TextStream(self.tokenizer)

    def _number(self, word: str) -> int:
        if not (word.isascii() and word.isdecimal()) or int(word) >= self.size:
            why = self.note or f"this corpus has no text, only ids below {self.size}"
            raise UserError(f"{word!r} is no token id: {why}")
        return int(word)


class NumberStream:
    """Ids written as numbers, a space before each."""

    def push(self, token: int) -> str:
        return f" {token}"

    def flush(self) -> str:
        return ""


def read_vocabulary(data: Data, runtime: Runtime, ranks: Path | None = None) -> Vocabulary:
    """The vocabulary of a config's corpus: its tokenizer.json, the characters of its meta file (nanoGPT's `itos`), or
    GPT-2's where it has neither, its ranks from `ranks` or from wherever they can be had.

    Raises UserError where the corpus is missing, its files are damaged, or `ranks` are given and have no use.
    """
    if isinstance(data.corpus, ZipfMixture):
        _refuse(ranks, "the corpus zipf_mixture has no text")
        return Vocabulary(data.corpus.alphabet_size)
    folder = corpus_folder(data.corpus, runtime, data.tokenizer)
    if not folder.is_dir():
        raise MissingCorpus(f"{folder}: no corpus there, whose vocabulary is needed")
    if (folder / TOKENIZER).is_file():
        _refuse(ranks, f"{folder / TOKENIZER} has its own")
        tokenizer = read_tokenizer(folder)
        return Vocabulary(tokenizer.n_vocab, tokenizer)
    meta = read_meta(folder)
    if meta.get("itos") is not None:
        _refuse(ranks, f"{folder} has its characters")
        return Vocabulary(meta["vocab_size"], read_tokenizer(folder))
    return _without_a_tokenizer(meta, ranks)


def _without_a_tokenizer(meta: dict[str, Any], ranks: Path | None) -> Vocabulary:
    """A folder without a meta file has nanoGPT's padded vocabulary: GPT-2's tokens, and ids that stand for nothing."""
    size = meta["vocab_size"]
    if size == NANOGPT_VOCAB or meta.get("tokenizer") == "gpt2":
        try:
            return Vocabulary(GPT2_VOCAB, load_tokenizer("gpt2", ranks=ranks))
        except MissingRanks as error:
            return Vocabulary(GPT2_VOCAB, eot=GPT2_VOCAB - 1, note=str(error))
    if ranks is None:
        return Vocabulary(size)
    tokenizer = recognised(read_ranks(ranks))
    if tokenizer.n_vocab > size:
        raise UserError(
            f"{ranks}: {tokenizer.n_vocab:,} tokens, but the corpus has {size:,}: another tokenizer made it"
        )
    return Vocabulary(size, tokenizer)


def _refuse(ranks: Path | None, why: str) -> None:
    if ranks is not None:
        raise UserError(f"--ranks {ranks}: no use for them: {why}")
