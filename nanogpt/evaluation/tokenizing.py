"""Which tokenizer a model reads and a corpus is written in, and whether they are one."""

from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.config.data import ZipfMixture
from nanogpt.data.alphabets import Characters, Tokenizer
from nanogpt.data.binfiles import NANOGPT_VOCAB, read_meta
from nanogpt.data.opening import MissingCorpus, corpus_folder
from nanogpt.data.tokenizers import TOKENIZER, load_tokenizer, read_tokenizer
from nanogpt.trained import Trained


def tokenizer_of_model(trained: Trained) -> Tokenizer | None:
    """The tokenizer that a model was trained on; None where its tokens stand for no text (zipf_mixture).

    Raises UserError where its corpus is no longer there, or where the model has fewer tokens than the tokenizer.
    """
    corpus, runtime = trained.config.data.corpus, trained.config.runtime
    if isinstance(corpus, ZipfMixture):
        return None
    folder = corpus_folder(corpus, runtime)
    if not folder.is_dir():
        raise MissingCorpus(f"{folder}: no corpus there, whose tokenizer the model reads")
    tokenizer = tokenizer_of_folder(folder)
    size = trained.model.embedding.weight.shape[0]
    if tokenizer is not None and tokenizer.n_vocab > size:
        raise UserError(
            f"{folder}: its tokenizer {tokenizer.name} has {tokenizer.n_vocab:,} tokens, the model {size:,}: "
            "it was trained on another corpus"
        )
    return tokenizer


def tokenizer_of_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer that a corpus's folder is written in; None where its meta file knows only how many ids there are.

    Folders of nanoGPT's: the characters of a meta file, or GPT-2's tokens where there is none.
    """
    if (folder / TOKENIZER).is_file():
        return read_tokenizer(folder)
    meta = read_meta(folder)
    if "itos" in meta:
        return Characters(_characters(folder, meta["itos"]))
    return load_tokenizer("gpt2") if meta["vocab_size"] == NANOGPT_VOCAB else None


def _characters(folder: Path, itos: Any) -> tuple[str, ...]:
    texts = [itos[token] for token in sorted(itos)] if isinstance(itos, dict) else itos
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{folder}: meta file: itos: expected a list of texts, or a mapping from ids to texts")
    return tuple(texts)


def check_same(read: Tokenizer | None, written: Tokenizer | None, place: str) -> None:
    """Raises UserError, naming both, where a model reads another tokenizer than a corpus is written in."""
    if read is None or written is None:
        if read is not written:
            names = [each.name if each else "ids that stand for no text" for each in (read, written)]
            raise UserError(f"eval: {place}: the model reads {names[0]}, this corpus holds {names[1]}")
        return
    if read.fingerprint != written.fingerprint:
        other = " of other characters or merges" if read.name == written.name else ""
        raise UserError(
            f"eval: {place}: written in the tokenizer {written.name}{other}, the model reads {read.name}: "
            f"prepare it with that one, or give the text itself as a file"
        )
