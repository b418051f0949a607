"""Which tokenizer a model reads and a corpus is written in, and whether they are one."""

from pathlib import Path

from nanogpt.config import UserError
from nanogpt.config.data import BinFolder, Data
from nanogpt.config.runtime import Runtime
from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary

NO_TEXT = "ids that stand for no text"


def vocabulary_of_folder(folder: Path, ranks: Path | None = None) -> Vocabulary:
    """What the ids of a corpus's folder mean."""
    return read_vocabulary(Data(corpus=BinFolder(path=str(folder))), Runtime(), ranks)


def text_tokenizer(vocabulary: Vocabulary, asked_by: str) -> Tokenizer:
    """The tokenizer that texts are written in. Raises UserError, saying why, where there is none."""
    if vocabulary.tokenizer is None:
        why = vocabulary.note or f"the model's tokens are {NO_TEXT}: it cannot be asked in words"
        raise UserError(f"eval: {asked_by}: {why}")
    return vocabulary.tokenizer


def check_same(read: Vocabulary, written: Vocabulary, place: str) -> None:
    """Raises UserError, naming both, where a model reads another tokenizer than a corpus is written in."""
    if read.tokenizer is None or written.tokenizer is None:
        if read.tokenizer is not written.tokenizer or read.size < written.size:
            raise UserError(f"eval: {place}: the model reads {_named(read)}, this corpus holds {_named(written)}")
        return
    if read.tokenizer.fingerprint != written.tokenizer.fingerprint:
        alike = read.tokenizer.name == written.tokenizer.name
        other = f" ({written.tokenizer.n_vocab:,} others than the model's)" if alike else ""
        raise UserError(
            f"eval: {place}: written in the tokenizer {written.tokenizer.name}{other}, the model reads "
            f"{read.tokenizer.name}: prepare it with that one, or give its text as a file"
        )


def _named(vocabulary: Vocabulary) -> str:
    if vocabulary.tokenizer is not None:
        return f"the tokenizer {vocabulary.tokenizer.name}"
    return f"{vocabulary.size:,} {NO_TEXT}" + (f" ({vocabulary.note})" if vocabulary.note else "")
