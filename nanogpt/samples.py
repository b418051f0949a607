"""Text from a trained run, piece by piece as it is generated: what `python -m nanogpt sample` prints.

Shapes: B samples at once, T tokens of the prompt.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nanogpt.config import UserError
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.generation import generate, row_generators
from nanogpt.sampling import Sampling
from nanogpt.trained import Trained

AT_ONCE = 16  # samples in one batch: a step then costs little more than that of one, and the cache stays small


@dataclass(frozen=True)
class Wanted:
    """What is to be written: samples that begin with `prompt`, numbered from 1, from the streams of one seed.

    `max_length` bounds a sample's tokens, the prompt's among them, in place of `how.max_new_tokens`. `ranks` are those
    of GPT-2 where the corpus has no tokenizer of its own.
    """

    prompt: str
    samples: int
    seed: int
    how: Sampling
    max_length: int | None = None
    ranks: Path | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"sample: num_samples: expected at least 1, got {self.samples}")


def write_samples(trained: Trained, wanted: Wanted) -> Iterator[str]:
    """The samples' text, each after its prompt; several have a heading each, one alone has none.

    A batch of samples is generated at once: its first is yielded token by token, the others follow whole. Raises
    UserError before anything is generated for a prompt that the vocabulary cannot write, and for a corpus that the
    model was not trained on.
    """
    vocabulary = trained.vocabulary(wanted.ranks)
    start = _start(vocabulary, wanted.prompt)
    wanted = _bounded(wanted, len(start) if wanted.prompt else 0)
    if vocabulary.note:
        print(f"nanogpt: sample: token ids instead of text: {vocabulary.note}", file=sys.stderr)
    for first in range(0, wanted.samples, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, wanted.samples))
        yield from _batch(trained, vocabulary, wanted, start, rows)


def _start(vocabulary: Vocabulary, prompt: str) -> list[int]:
    try:
        return vocabulary.encode(prompt) or [vocabulary.start]
    except UserError as error:
        raise UserError(f"sample: prompt: {error}") from None


def _bounded(wanted: Wanted, prompt_tokens: int) -> Wanted:
    """`max_length` as a number of new tokens. An empty prompt counts for none: what it starts from is not shown."""
    if wanted.max_length is None:
        return wanted
    room = wanted.max_length - prompt_tokens
    if room < 1:
        raise UserError(
            f"sample: max_length: {wanted.max_length} leaves no room after the prompt's {prompt_tokens} tokens"
        )
    return replace(wanted, how=replace(wanted.how, max_new_tokens=room))


def _batch(trained: Trained, vocabulary: Vocabulary, wanted: Wanted, start: list[int], rows: range) -> Iterator[str]:
    device = next(trained.model.parameters()).device
    idx_BT = torch.tensor([start], device=device).expand(len(rows), -1)
    streams = [vocabulary.stream() for _ in rows]
    later: list[list[str]] = [[] for _ in rows]
    yield _opening(wanted, rows[0])
    generators = row_generators(wanted.seed, rows)
    for next_B in generate(trained.model, idx_BT, wanted.how, generators, tokens=vocabulary.meaningful):
        pieces = [stream.push(token) for stream, token in zip(streams, next_B.tolist(), strict=True)]
        yield pieces[0]
        for text, piece in zip(later, pieces, strict=True):
            text.append(piece)
    yield streams[0].flush() + "\n"
    for row, text, stream in zip(rows[1:], later[1:], streams[1:], strict=True):
        yield _opening(wanted, row) + "".join(text) + stream.flush() + "\n"


def _opening(wanted: Wanted, row: int) -> str:
    heading = f"--- sample {row + 1} of {wanted.samples}, seed {wanted.seed} ---\n" if wanted.samples > 1 else ""
    return heading + wanted.prompt
