"""The tokenizer that lies beside weights of transformers', as the vocabulary of their model."""

from pathlib import Path

from nanogpt.config import UserError
from nanogpt.data.tokenizers import MissingRanks, load_tokenizer, read_tokenizer
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.weights.place import Place
from nanogpt.weights.resolving import GPT2_VOCAB


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
