"""Text from a trained run, piece by piece as it is generated: what `python -m nanogpt sample` prints.

Shapes: B samples at once, T tokens of the prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nanogpt.config import UserError
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary
from nanogpt.generation import generate, row_generators
from nanogpt.sampling import Sampling
from nanogpt.trained import Trained

AT_ONCE = 16  # samples in one batch: a step then costs little more than that of one, and the cache stays small


@dataclass(frozen=True)
class Wanted:
    """What is to be written: samples that begin with `prompt`, numbered from 1, from the streams of one seed."""

    prompt: str
    samples: int
    seed: int
    how: Sampling

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"sample: num_samples: expected at least 1, got {self.samples}")


def write_samples(trained: Trained, wanted: Wanted) -> Iterator[str]:
    """The samples' text, each after its prompt; several have a heading each, one alone has none.

    A batch of samples is generated at once: its first is yielded token by token, the others follow whole. Raises
    UserError before anything is generated for a prompt that the vocabulary cannot write, and for a corpus that the
    model was not trained on.
    """
    vocabulary = read_vocabulary(trained.config.data, trained.config.runtime)
    start = _start(trained, vocabulary, wanted.prompt)
    for first in range(0, wanted.samples, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, wanted.samples))
        yield from _batch(trained, vocabulary, wanted, start, rows)


def _start(trained: Trained, vocabulary: Vocabulary, prompt: str) -> list[int]:
    size = trained.config.model.vocab_size
    assert isinstance(size, int)
    if vocabulary.meaningful > size:
        raise UserError(
            f"the corpus has {vocabulary.meaningful} kinds of tokens, the model {size}: "
            "it was trained on another corpus"
        )
    try:
        return vocabulary.encode(prompt) or [vocabulary.start]
    except UserError as error:
        raise UserError(f"sample: prompt: {error}") from None


def _batch(trained: Trained, vocabulary: Vocabulary, wanted: Wanted, start: list[int], rows: range) -> Iterator[str]:
    device = next(trained.model.parameters()).device
    idx_BT = torch.tensor([start], device=device).expand(len(rows), -1)
    later: list[list[str]] = [[] for _ in rows]
    yield _opening(wanted, rows[0])
    generators = row_generators(wanted.seed, rows)
    for next_B in generate(trained.model, idx_BT, wanted.how, generators, tokens=vocabulary.meaningful):
        pieces = [vocabulary.decode([token]) for token in next_B.tolist()]
        yield pieces[0]
        for text, piece in zip(later, pieces, strict=True):
            text.append(piece)
    yield "\n"
    for row, text in zip(rows[1:], later[1:], strict=True):
        yield _opening(wanted, row) + "".join(text) + "\n"


def _opening(wanted: Wanted, row: int) -> str:
    heading = f"--- sample {row + 1} of {wanted.samples}, seed {wanted.seed} ---\n" if wanted.samples > 1 else ""
    return heading + wanted.prompt
