"""Models of every trunk for the tests of this folder: the registry's, and variants of each arm."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.config import Config
from nanogpt.config.model import kind_of
from nanogpt.config.trunks import COUNT_THEIR_OWN
from nanogpt.model import GPT, build_model
from nanogpt.model.trunks import TRUNKS

VOCAB, TOKENS, WIDTH, LAYERS = 37, 12, 32, 4

LAW = {"kind": "poisson_lognormal", "mean_loops": 3}
VARIANTS: dict[str, dict[str, Any]] = {trunk: {"kind": trunk} for trunk in TRUNKS} | {
    "shared groups": {"kind": "shared", "groups": 3},
    "shared cycle": {"kind": "shared", "groups": 2, "order": "cycle"},
    "shared attention": {"kind": "shared", "scope": "attn"},
    "shared ffn": {"kind": "shared", "scope": "ffn", "groups": 2},
    "recurrent drawn": {"kind": "recurrent", "prelude": 1, "core": 2, "coda": 1, "depth": LAW},
    "recurrent truncated": {"kind": "recurrent", "depth": {"loops": 5}, "backprop_loops": 2},
    "recurrent drawn, truncated": {"kind": "recurrent", "inject": "add", "depth": LAW, "backprop_loops": 2},
    "recurrent noise": {"kind": "recurrent", "coda": 0, "state_init": "like_embed", "depth": {"kind": "lognormal"}},
    "recurrent bare": {"kind": "recurrent", "prelude": 0, "coda": 0, "inject": "none", "state_init": "input"},
    "recurrent add": {"kind": "recurrent", "core": 2, "inject": "add", "state_init": "input"},
    "hierarchical": {"kind": "random2d", "order": "hierarchical"},
    "parallel sum": {"kind": "random2d", "levels": "parallel", "combine": "sum"},
    "hierarchical parallel": {"kind": "random2d", "order": "hierarchical", "levels": "parallel", "vertical": [1, 5]},
}
any_trunk = pytest.mark.parametrize("trunk", VARIANTS.values(), ids=list(VARIANTS))
STEPS = (0, 1, 2, 3)


def make(trunk: dict[str, Any] | str, **sections: Any) -> Config:
    model = {"n_head": 4, "n_embd": WIDTH, "block_size": TOKENS, "vocab_size": VOCAB, "trunk": trunk}
    if kind_of(trunk) not in COUNT_THEIR_OWN:
        model["n_layer"] = LAYERS
    model |= sections.pop("model", {})
    return Config.model_validate({"model": model, "train": {"max_iters": 10}, **sections})


def tokens(batch: int = 2, length: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def perturbed(config: Config, alpha: float = 0.1) -> GPT:
    """A model whose every tensor is random, routers included, so that no promise is kept by a symmetric start.

    What is added to each has a standard deviation of `alpha`.
    """
    model, generator = build_model(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=alpha)
    return model


def gradients(model: GPT) -> dict[str, Tensor]:
    model.zero_grad()
    model.losses(tokens(), tokens(seed=1)).total.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def recurrent(**arm: Any) -> dict[str, Any]:
    return {"kind": "recurrent", **arm}
