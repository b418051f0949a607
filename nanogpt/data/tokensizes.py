"""How many bytes of text each token stands for: what turns a loss per token into bits per byte."""

import numpy as np
from numpy.typing import NDArray

from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.folders import CorpusFiles
from nanogpt.data.tokenizers import TOKENIZER, read_tokenizer


def token_sizes(files: CorpusFiles) -> NDArray[np.int64] | None:
    """The UTF-8 size of each token of a corpus, shape [vocab_size]; None where the folder does not tell."""
    spelt_out = files.manifest is None and files.fingerprint is not None  # the characters of nanoGPT's meta file
    if not spelt_out and not (files.folder / TOKENIZER).is_file():
        return None
    return sizes_of(read_tokenizer(files.folder), files.vocab_size)


def sizes_of(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.int64]:
    """The UTF-8 size of each token; 0 for those that stand for no text, and for ids that only pad a vocabulary."""
    known = min(tokenizer.n_vocab, vocab_size)
    sizes = [len(tokenizer.token_bytes(token)) for token in range(known)]
    return np.array(sizes + [0] * (vocab_size - known), dtype=np.int64)
