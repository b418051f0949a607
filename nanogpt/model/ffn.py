"""The registry of feed-forward layers: one line in FFNS per `model.ffn.kind`."""

from collections.abc import Callable

from nanogpt.config.ffns import Mixture
from nanogpt.config.model import Model
from nanogpt.model.dense import FeedForward, dense_ffn
from nanogpt.model.moe import SoftMoE, TopKMoE

FFNS: dict[str, Callable[[Model], FeedForward]] = {
    "gelu": dense_ffn,
    "gelu_exact": dense_ffn,
    "relu2": dense_ffn,
    "swiglu": dense_ffn,
    "soft_moe": SoftMoE,
    "topk_moe": TopKMoE,
}


def build_ffn(model: Model, block: int) -> FeedForward:
    """The feed-forward layer of unique block number `block`: under `moe_every` some blocks of a mixture are dense."""
    if isinstance(model.ffn, Mixture) and not model.ffn.has_experts(block):
        return dense_ffn(model)
    return FFNS[model.ffn.kind](model)
