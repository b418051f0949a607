"""Samples text from a trained run: `python -m nanogpt sample RUN --prompt "O God"`.

Shapes: B samples, T tokens so far, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt import checkpoint
from nanogpt.config import Config, UserError
from nanogpt.configfile import build_config, load_layers
from nanogpt.data.vocabulary import read_vocabulary
from nanogpt.hardware import torch_device
from nanogpt.model import GPT, build_model


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; `top_k` keeps the k likeliest."""

    max_new_tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"sample: max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sample: temperature: expected 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sample: top_k: expected at least 1, got {self.top_k}")


@dataclass(frozen=True)
class Trained:
    """A run's resolved config and its model with the weights of the furthest checkpoint, in evaluation mode."""

    config: Config
    model: GPT


def load_trained(folder: Path, device: str | None = None) -> Trained:
    """The model that a run's folder holds. Raises UserError when it has no config or no whole checkpoint."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run there (a run's folder holds config.yaml)")
    config = build_config(load_layers(folder / "config.yaml"), str(folder))
    loaded = checkpoint.load_latest(folder)
    if loaded is None:
        raise UserError(f"{folder}: the run left no checkpoint to sample from")
    model = build_model(config, torch_device(device or config.runtime.device, config.runtime.threads))
    model.load_state_dict(loaded.state["model"])
    return Trained(config, model.eval())


@torch.no_grad()
def generate(model: GPT, idx_BT: Tensor, how: Sampling, generator: torch.Generator) -> Iterator[Tensor]:
    """The new tokens, (B,) at a time. Past block_size the model sees the last block_size tokens.

    The logits are those of training, with every multiplier of the parametrization in them. `generator` is of the
    CPU, so that a seed gives the same text wherever the model is.
    """
    for _ in range(how.max_new_tokens):
        logits_BV = model(idx_BT[:, -model.config.block_size :])[:, -1].float().cpu()
        next_B = _choose(logits_BV, how, generator)
        yield next_B
        idx_BT = torch.cat([idx_BT, next_B[:, None].to(idx_BT.device)], dim=1)


def _choose(logits_BV: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    if how.temperature == 0:
        return logits_BV.argmax(dim=-1)
    if how.top_k is not None and how.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(how.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    return torch.multinomial((logits_BV / how.temperature).softmax(-1), 1, generator=generator).squeeze(1)


def sample(folder: Path, prompt: str, how: Sampling, samples: int, seed: int, device: str | None) -> Iterator[str]:
    """Text piece by piece, a heading before each sample. A corpus without characters is shown as token ids.

    Raises UserError before anything is sampled for a prompt that the vocabulary cannot write.
    """
    if samples < 1:
        raise UserError(f"sample: num_samples: expected at least 1, got {samples}")
    trained = load_trained(folder, device)
    vocabulary = read_vocabulary(trained.config.data, trained.config.runtime)
    start = vocabulary.encode(prompt) if prompt else [0]
    generator = torch.Generator().manual_seed(seed)
    where: Any = next(trained.model.parameters()).device
    for number in range(1, samples + 1):
        yield f"--- sample {number} of {samples}, seed {seed} ---\n{prompt}"
        for token in generate(trained.model, torch.tensor([start], device=where), how, generator):
            yield vocabulary.decode([int(token)])
        yield "\n"
