"""Weights as transformers saves them, made by our own export: tests/weights/test_against_transformers.py proves it."""

from pathlib import Path
from typing import Any

import torch

from nanogpt.config import Config
from nanogpt.model import GPT
from nanogpt.trained import Trained
from nanogpt.weights.export import export

GPT2: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 32}
LLAMA: dict[str, Any] = {**GPT2, "norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "bias": False}


def random_model(shape: dict[str, Any], seed: int = 0, **sections: Any) -> Trained:
    """A model with every parameter drawn, of std 0.4."""
    config = Config.model_validate({"model": shape, "train": {"max_iters": 1}, **sections})
    gpt = GPT(config.model, config.parametrization).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return Trained(config, gpt, step=0, name="random weights")


def save_hf(folder: Path, shape: dict[str, Any] = GPT2, seed: int = 0, **sections: Any) -> Trained:
    """The same, exported into a folder."""
    trained = random_model(shape, seed, **sections)
    export(trained, folder)
    return trained


def some_tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(1))
