"""A language whose probabilities anyone can add up by hand, a tokenizer for it, and a GPT that speaks it.

The tokens stand in a circle, in the order of TOKENS. A token costs 1 bit and 1 more for each step forward from the
token before it; the farthest costs as much as its neighbour, so that the probabilities add up to 1. After `r`, the
space between words costs 1 + 9 = 10 bits; after that space `r` costs 1 + 51 = 52, and after `r` an `s` costs 2: the
ending `rs` of a context that ends in `r` has 64 bits.
"""

import math
import string
from typing import Any

import torch

from nanogpt.config import Config
from nanogpt.data.alphabets import Characters, as_text
from nanogpt.model import GPT, build_model

TOKENS = (*string.ascii_lowercase, *" .:[]", *string.ascii_uppercase, "é", "th", "ing")
V = len(TOKENS)
LN2 = math.log(2)


class Circle(Characters):
    """Tokens of one, two and three characters; the longest that fits is taken."""

    name = "circle"

    def __init__(self) -> None:
        super().__init__(TOKENS)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        rest = as_text(text)
        while rest:
            token = next(token for token in sorted(TOKENS, key=len, reverse=True) if rest.startswith(token))
            ids.append(TOKENS.index(token))
            rest = rest[len(token) :]
        return ids


def bits(before: int, token: int) -> int:
    """What a token costs after another."""
    return min(1 + (token - before) % V, V - 1)


def config(block_size: int, **model: Any) -> Config:
    shape = {"n_layer": 1, "n_head": 1, "n_embd": V, "block_size": block_size, "vocab_size": V, "bias": False}
    shape |= {"norm": "rmsnorm", "position": "none", "tie_embeddings": False}
    runtime = {"device": "cpu", "threads": 1}
    return Config.model_validate({"model": shape | model, "train": {"max_iters": 1}, "runtime": runtime})


def speaker(block_size: int = 128) -> GPT:
    """The model: one-hot embeddings, blocks that add nothing, and the logarithms of the probabilities as the head."""
    model = build_model(config(block_size)).eval()
    with torch.no_grad():
        for parameter in model.trunk.parameters():
            parameter.zero_()
        model.embedding.weight.copy_(1000 * torch.eye(V))  # so large that the norm's epsilon does not show
        table = torch.tensor([[-LN2 * bits(before, token) for before in range(V)] for token in range(V)])
        assert model.head is not None
        model.head.weight.copy_(table / math.sqrt(V))  # RMSNorm makes a one-hot vector sqrt(V) long
    return model


def babbler(block_size: int = 128, **model: Any) -> GPT:
    """A model of the same tokens with large random weights, which looks at everything before."""
    found = build_model(config(block_size, n_embd=16, n_head=2, n_layer=2, position="rope", **model)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return found
