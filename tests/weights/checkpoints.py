"""Weights as transformers saves them, made by our own export: tests/weights/test_against_transformers.py proves it."""

from pathlib import Path
from typing import Any

import torch

from nanogpt.config import Config
from nanogpt.config.layers import Layers
from nanogpt.configfile import build_config
from nanogpt.model import GPT
from nanogpt.trained import Trained
from nanogpt.weights.export import export

GPT2: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 32}
LLAMA: dict[str, Any] = {**GPT2, "norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "bias": False}
CORPUS = {"kind": "zipf_mixture", "alphabet_size": 32, "train_tokens": 65536, "val_tokens": 8192}


def config_of(weights: Path | str, **settings: Any) -> Config:
    """What a config file with these settings means."""
    layers = Layers()
    tree = {"init_from": str(weights), "data.corpus": CORPUS, "batch_size": 2, "max_iters": 3, "precision": "fp32",
            "eval_tokens": 64, "eval_interval": None, "device": "cpu", "threads": 1}  # fmt: skip
    layers.lay({**tree, **settings}, {}, "here.yaml:3")
    return build_config(layers, "here.yaml")


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
