"""How the next token is chosen from logits: repetition penalty, temperature, top-k, top-p, min-p, then the draw.

The order and the sets are those of Hugging Face's `generate`, so that its settings give its distributions.
Shapes: B rows, V vocabulary. A filter takes float32 logits and puts -inf where it removes a token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.config import UserError

REMOVED = float("-inf")
# A sum of probabilities is off by this much in float32: a prefix that misses top_p by less has reached it.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Sampling:
    """The settings of generation; the defaults draw from the model's own distribution.

    `do_sample` False, or `temperature` 0, takes the likeliest token of the raw logits, and the other settings count
    for nothing. A filter is off at None, `top_k` also at 0. Raises UserError for values out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    do_sample: bool = True

    def __post_init__(self) -> None:
        _expect("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _expect("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _expect("top_k", self.top_k, self.top_k is None or self.top_k >= 0, "at least 1, or 0 for off")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            _expect(name, value, value is None or 0 <= value <= 1, "a number from 0 to 1")
        penalty = self.repetition_penalty
        _expect("repetition_penalty", penalty, 0 < penalty < math.inf, "more than 0 (1 is off)")

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0


def _expect(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"sample: {name}: expected {allowed}, got {value}")


def next_tokens(logits_BV: Tensor, seen_BV: Tensor, how: Sampling, generators: list[torch.Generator]) -> Tensor:
    """The next token of every row, (B,). Row b draws from `generators[b]` alone; a greedy choice draws nothing.

    `seen_BV` is true for the tokens that a row has had so far, the prompt's among them.
    """
    if how.is_greedy:
        return logits_BV.argmax(dim=-1)
    uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=each) for each in generators])
    # The rows' generators are the CPU's, so that every device draws alike; and not every device has float64.
    return draw(distribution(logits_BV.cpu(), seen_BV.cpu(), how), uniform_B).to(logits_BV.device)


def distribution(logits_BV: Tensor, seen_BV: Tensor, how: Sampling) -> Tensor:
    """The probabilities from which a token is drawn, (B, V): penalty, temperature, top-k, top-p, min-p, softmax."""
    logits_BV = penalize_repetition(logits_BV.float(), seen_BV, how.repetition_penalty)
    logits_BV = heat(logits_BV, how.temperature)
    if how.top_k:
        logits_BV = keep_top_k(logits_BV, how.top_k)
    if how.top_p is not None:
        logits_BV = keep_top_p(logits_BV, how.top_p)
    if how.min_p is not None:
        logits_BV = keep_min_p(logits_BV, how.min_p)
    return logits_BV.softmax(dim=-1)


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of tokens seen before, once each: positive ones divided by the penalty, negative ones multiplied.

    CTRL, arXiv 1909.05858, section 4.1, in the form that also lowers a negative logit.
    """
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def heat(logits_BV: Tensor, temperature: float) -> Tensor:
    """Logits over temperature, up to a constant per row.

    The largest becomes 0 and the quotient is taken in float64: the smallest temperature gives no 0 / 0.
    """
    below_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
    return (below_BV.double() / temperature).float()


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep the logits not below the k-th largest: ties with it stay, and k at or above V removes nothing."""
    least_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, REMOVED)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the shortest run of likeliest tokens whose probabilities reach p, the token that crosses p among them.

    Nucleus sampling, arXiv 1904.09751. At least one token stays; p = 1 removes nothing.
    """
    if p == 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probabilities_BV = sorted_BV.softmax(dim=-1)
    before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
    removed_BV = before_BV >= p - ROUNDING
    removed_BV[:, 0] = False
    return logits_BV.masked_fill(removed_BV.scatter(1, order_BV, removed_BV), REMOVED)


def keep_min_p(logits_BV: Tensor, min_p: float) -> Tensor:
    """Keep the tokens at least `min_p` times as likely as the likeliest (arXiv 2407.01082)."""
    probabilities_BV = logits_BV.softmax(dim=-1)
    least_B1 = min_p * probabilities_BV.amax(dim=-1, keepdim=True)
    return logits_BV.masked_fill(probabilities_BV < least_B1, REMOVED)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One token per row, by the inverse of the cumulative distribution at `uniform_B` in [0, 1).

    One number per row decides it, so a row's draws are its own. A token of probability 0 is never drawn: the sum does
    not grow at it, and the first that exceeds the target does.
    """
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
