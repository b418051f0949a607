"""The GPT: one network with independent choices of norm, position, attention, feed-forward layer and trunk."""

from nanogpt.model.cache import Cache
from nanogpt.model.compiling import compiled_losses
from nanogpt.model.gpt import GPT, Losses, ParameterCounts, build_model, model_rules

__all__ = ["GPT", "Cache", "Losses", "ParameterCounts", "build_model", "compiled_losses", "model_rules"]
