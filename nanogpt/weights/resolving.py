"""What starting from weights fills into a config when it is resolved: their sha256, and the vocabulary. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt.config import Config, UserError
from nanogpt.config.weights import Weights
from nanogpt.data.binfiles import GPT2_VOCAB, NANOGPT_VOCAB
from nanogpt.weights.digest import combined

if TYPE_CHECKING:
    from nanogpt.data.opening import CorpusFacts


def weights_files(config: Config, corpus: "CorpusFacts") -> dict[str, str]:
    """sha256 of the weights that a run starts from, by path; none for scratch.

    A config that knows it asks no file: the weights are looked at when they are loaded, and a run that has a
    checkpoint needs them no more. Raises UserError where they are not there or do not fit.
    """
    if not isinstance(config.init_from, Weights) or config.init_from.sha256 is not None:
        return {}
    from nanogpt.weights.initial import check_weights  # imports torch

    return check_weights(config, corpus)


def init_from(config: Config, files: Mapping[str, str]) -> Any:
    """The section with the weights' sha256."""
    if not files or not isinstance(config.init_from, Weights):
        return config.init_from
    digest = combined({Path(path).name: each for path, each in files.items()})
    return config.init_from.model_copy(update={"sha256": digest})


def starts_from(config: Config) -> dict[str, str]:
    """A row for people: the weights that a run starts from; none for scratch."""
    if not isinstance(config.init_from, Weights):
        return {}
    digest = f", sha256 {config.init_from.sha256[:12]}" if config.init_from.sha256 else ""
    return {"starts from": f"{config.init_from.weights}{digest}"}


def vocab_size(config: Config, corpus: int) -> int:
    """The model's vocabulary, which must hold the corpus's; GPT-2's own grows to the padded one of nanoGPT's files."""
    asked = config.model.vocab_size
    if asked == "auto" or asked >= corpus:
        return corpus if asked == "auto" else asked
    if not isinstance(config.init_from, Weights):
        raise UserError(f"model.vocab_size: {asked} is less than the corpus's {corpus}; use auto")
    if (asked, corpus) == (GPT2_VOCAB, NANOGPT_VOCAB):
        return corpus
    raise UserError(
        f"data.corpus: it has {corpus:,} kinds of tokens, the weights of {config.init_from.weights} {asked:,}: "
        "it was prepared with another tokenizer"
    )
