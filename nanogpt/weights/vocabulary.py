"""The tokenizer that lies beside weights of transformers', as the vocabulary of their model."""

import functools
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config import UserError
from nanogpt.data.binfiles import GPT2_VOCAB
from nanogpt.data.opening import CorpusFacts
from nanogpt.data.tokenizers import MissingRanks, load_tokenizer, read_tokenizer
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.weights.place import Place

SYNTHETIC = "zipf_mixture"  # whose tokens stand for no text, so that any model may learn them


def weights_vocabulary(place: Place, ranks: Path | None = None) -> Vocabulary:
    """The vocabulary of weights: by their tokenizer's files, by GPT-2's ranks where they are GPT-2's and have no files.

    Where the tokenizer cannot be had, or is of a kind that is not read, tokens are numbers and a note says why.
    """
    config = place.described()
    size, end = int(config["vocab_size"]), config.get("eos_token_id")
    eot = end if isinstance(end, int) and 0 <= end < size else None
    try:
        folder = place.tokenizer_folder()
        if folder is not None and ranks is None:
            return Vocabulary(size, read_tokenizer(folder))
        if ranks is not None or (config.get("model_type") == "gpt2" and size == GPT2_VOCAB):
            return Vocabulary(size, load_tokenizer("gpt2", ranks=ranks))
    except MissingRanks as problem:
        return Vocabulary(size, eot=eot, note=str(problem))
    except UserError as problem:
        if ranks is not None:
            raise
        return Vocabulary(size, eot=eot, note=str(problem))
    return Vocabulary(size, eot=eot, note=f"{place.name} has no tokenizer's files")


def check_tokenizer(place: Place, corpus: CorpusFacts) -> None:
    """Raises UserError where the weights are known to speak in other tokens than the corpus.

    What lies beside the weights says so, or that they are GPT-2's; nothing is downloaded for it but those files.
    """
    known = _known_tokenizer(place)
    if known is None or not corpus.tokenizer or corpus.tokenizer == SYNTHETIC:
        return
    same = known.fingerprint == corpus.fingerprint if known.fingerprint and corpus.fingerprint else None
    if same is None:
        same = known.name == corpus.tokenizer
    if not same:
        raise UserError(
            f"data.corpus: its tokenizer ({corpus.tokenizer}) is not that of {place.name} ({known.name}): "
            f"the same numbers would be other texts; prepare it with --tokenizer {known.how}"
        )


@dataclass(frozen=True)
class _Known:
    name: str
    fingerprint: str | None
    how: str  # what `prepare --tokenizer` wants


def _known_tokenizer(place: Place) -> _Known | None:
    try:
        folder = place.tokenizer_folder()
        if folder is not None:
            return _of_folder(folder)
    except UserError:  # of a kind that is not read: nothing is known
        return None
    config = place.described()
    is_gpt2 = config.get("model_type") == "gpt2" and config.get("vocab_size") == GPT2_VOCAB
    return _Known("gpt2", None, "gpt2") if is_gpt2 else None


@functools.cache
def _of_folder(folder: Path) -> _Known:
    """Read once: all the runs of a study start from the same weights."""
    found = read_tokenizer(folder)
    return _Known(found.name, found.fingerprint, "gpt2" if found.name == "gpt2" else str(folder))
