"""Generation: tokens one after another from a model, with a cache of keys and values until the window slides.

Shapes: B rows, T tokens so far, V vocabulary.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.model import GPT, Cache
from nanogpt.sampling import REMOVED, Sampling, next_tokens


def row_generators(seed: int, rows: range) -> list[torch.Generator]:
    """A random stream for each row by its number: what a row draws does not depend on how many others there are."""
    digests = [hashlib.sha256(f"{seed}:{row}".encode()).digest() for row in rows]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1) for digest in digests]


@torch.no_grad()
def generate(
    model: GPT,
    idx_BT: Tensor,
    how: Sampling,
    generators: list[torch.Generator],
    *,
    tokens: int | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """The new tokens, (B,) at a time, on the CPU.

    The logits are those of training, with every multiplier of the parametrization in them. Only ids below `tokens`
    are chosen (None: all): a padded vocabulary has ids that stand for nothing. `generators`, one per row, are of the
    CPU, so that a seed gives the same text wherever the model is. The model is in evaluation mode while it works, so
    a trunk that draws schedules in training has one fixed schedule here. `cached=False` gives the same by computing
    every step anew. Raises UserError when the logits are not finite.
    """
    assert len(generators) == len(idx_BT), "a generator per row"
    was_training = model.training
    model.eval()
    try:
        yield from _steps(model, idx_BT, how, generators, tokens, cached)
    finally:
        model.train(was_training)


def _steps(
    model: GPT, idx_BT: Tensor, how: Sampling, generators: list[torch.Generator], tokens: int | None, cached: bool
) -> Iterator[Tensor]:
    block_size = model.config.block_size
    window_BT = idx_BT[:, -block_size:]
    cache = Cache(min(block_size, window_BT.shape[1] + how.max_new_tokens)) if cached else None
    new_BT, seen_BV = window_BT, _seen(idx_BT.cpu(), model.embedding.weight.shape[0])
    for _ in range(how.max_new_tokens):
        if cache is not None and cache.length + new_BT.shape[1] > block_size:
            # The window slides from here on: every token moves to another position, and no key stays what it was.
            cache = None
        logits_BV = model.next_logits(window_BT) if cache is None else model.next_logits(new_BT, cache)
        next_B = next_tokens(_usable(logits_BV, tokens), seen_BV, how, generators)
        yield next_B
        seen_BV.scatter_(1, next_B[:, None], True)
        new_BT = next_B[:, None].to(idx_BT.device)
        window_BT = torch.cat([window_BT, new_BT], dim=1)[:, -block_size:]


def _seen(idx_BT: Tensor, vocab_size: int) -> Tensor:
    """Which tokens each row has, (B, V)."""
    return torch.zeros(len(idx_BT), vocab_size, dtype=torch.bool).scatter(1, idx_BT, True)


def _usable(logits_BV: Tensor, tokens: int | None) -> Tensor:
    """Logits in float32 on the CPU, -inf for ids that stand for nothing."""
    logits_BV = logits_BV.float().cpu()
    if not torch.isfinite(logits_BV).all():
        raise UserError("the model's logits are not finite: its training has diverged")
    if tokens is not None and tokens < logits_BV.shape[1]:
        logits_BV[:, tokens:] = REMOVED
    return logits_BV
