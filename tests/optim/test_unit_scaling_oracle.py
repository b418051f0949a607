"""depth_mup against u-muP's own package, PyPI `unit-scaling` 0.3: the depth rule with alpha = 1/2, and the width's.

u-muP (arXiv 2407.17465) writes the same rules in another gauge: every weight has std 1 and each product carries its
factor A. What acts is A x std and, under Adam, A x lr (tests/model/test_gauge.py proves that symmetry for our model),
so that is what is compared, as ratios to a base shape. Two of its choices are its own and not compared: an embedding's
rate falls as n_embd^-1/2, and the activations have their own factors.

The package is no dependency, for its own would replace torch: `make test` installs it alone. Without it these
tests skip.
"""

import math
from typing import Any

import pytest
import torch

from nanogpt.config import Config
from nanogpt.model import build_model
from nanogpt.optim import build_optimizer

uu: Any = pytest.importorskip("unit_scaling", reason="PyPI unit-scaling is not installed; see CONTRIBUTING.md")

LR, DECAY, BASE = 3e-3, 1e-4, (32, 2)
SHAPES = [(32, 2), (64, 2), (32, 8), (128, 32)]  # (width, layers)
# Their modules by our names: the matrices of a block.
NAMES = {
    "attention.qkv": "mhsa.linear_qkv",
    "attention.out": "mhsa.linear_o",
    "ffn.up": "mlp.linear_1",
    "ffn.down": "mlp.linear_2",
}


def ours(width: int, layers: int) -> dict[str, dict[str, float]]:
    """std, rate and decay per step of each matrix in the last block, the head, and what a branch is multiplied by."""
    config = Config.model_validate(
        {
            "model": {"n_layer": layers, "n_head": width // 16, "n_embd": width, "block_size": 8, "vocab_size": 64}
            | {"tie_embeddings": False, "bias": False},
            "train": {"max_iters": 1},
            "optimizer": {"learning_rate": LR, "weight_decay": DECAY},
            "parametrization": {"mode": "depth_mup", "base_n_embd": BASE[0], "base_n_layer": BASE[1]}
            | {"weight_decay_rule": "independent"},
        }
    )
    model = build_model(config, "meta")
    groups = {id(p): g for g in build_optimizer(model, config, "meta").param_groups for p in g["params"]}
    roles, rules = model.roles(), model.rules
    parameters = dict(model.named_parameters())
    found = {"branch": {"weight": rules.residual_multiplier}}
    factors = {"head": rules.output_multiplier, **dict.fromkeys(NAMES, 1.0)}
    for name, factor in factors.items():
        path = "head.weight" if name == "head" else f"trunk.blocks.{layers - 1}.{name}.weight"
        group, std = groups[id(parameters[path])], rules.roles[roles[path]].init_std
        found[name] = {"std": factor * std, "rate": factor * group["lr"], "decay": group["lr"] * group["weight_decay"]}
    return found


def factor_of(layer: torch.nn.Module) -> float:
    """The factor that a unit-scaled layer puts on its product, read off what it computes."""
    x = torch.ones(1, layer.weight.shape[1])
    return (layer(x) / (x @ layer.weight.T)).mean().item()


def theirs(width: int, layers: int) -> dict[str, dict[str, float]]:
    tau = uu.transformer_residual_scaling_rule()
    taus = [tau(index, 2 * layers) for index in range(2 * layers)]
    blocks = [
        uu.TransformerLayer(width, width // 16, mhsa_tau=taus[2 * i], mlp_tau=taus[2 * i + 1], is_causal=True)
        for i in range(layers)
    ]
    stack, head = uu.DepthSequential(*blocks), uu.LinearReadout(width, 64)
    parameters = [*stack.parameters(), *head.parameters()]
    groups = {
        id(group["params"][0]): group
        for group in uu.optim.scaled_parameters(parameters, uu.optim.lr_scale_func_adam, lr=LR, weight_decay=DECAY)
    }
    # x <- (x + tau f) / sqrt(1 + tau^2): a branch's weight against the embedding's, the same for every branch.
    passed = math.prod(math.sqrt(1 + earlier**2) for earlier in taus[:-1])
    found = {"branch": {"weight": taus[-1] * passed}}
    layers_by_name = {name: stack[-1].get_submodule(path) for name, path in NAMES.items()} | {"head": head}
    for name, layer in layers_by_name.items():
        factor, group = factor_of(layer), groups[id(layer.weight)]
        found[name] = {"std": factor, "rate": factor * group["lr"], "decay": group["lr"] * group["weight_decay"]}
    return found


@pytest.mark.parametrize(("width", "layers"), SHAPES[1:])
def test_depth_mup_is_u_mup_in_another_gauge(width: int, layers: int) -> None:
    mine, base_mine, its, base_its = ours(width, layers), ours(*BASE), theirs(width, layers), theirs(*BASE)
    for name, values in mine.items():
        for key, value in values.items():
            ratio = its[name][key] / base_its[name][key]
            assert value / base_mine[name][key] == pytest.approx(ratio, rel=1e-5), (name, key)
