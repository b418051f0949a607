"""The width rules against the authors' own package, PyPI `mup` 1.0.0: learning rate, weight decay, std, multiplier.

The package is no dependency, for its own would replace torch: `make test` installs it alone. Without it these
tests skip.
"""

from typing import Any

import pytest
import torch

from nanogpt.config import Config
from nanogpt.model import GPT, build_model
from nanogpt.optim import build_optimizer

mup: Any = pytest.importorskip("mup", reason="PyPI mup is not installed; see CONTRIBUTING.md")

LR, DECAY, BASE = 3e-3, 0.2, 32


def config(width: int, ffn: int, tied: bool = False) -> Config:
    return Config.model_validate(
        {
            "model": {"n_layer": 2, "n_head": width // 16, "n_embd": width, "block_size": 8, "vocab_size": 64}
            | {"tie_embeddings": tied, "ffn": {"kind": "swiglu", "hidden": ffn}},
            "train": {"max_iters": 1},
            "optimizer": {"learning_rate": LR, "weight_decay": DECAY},
            "parametrization": {"mode": "mup", "base_n_embd": BASE, "base_ffn_hidden": 96, "init_std": 0.05},
        }
    )


def shaped(width: int, ffn: int) -> tuple[GPT, Config]:
    """A model whose parameters carry mup's account of which of their dimensions grow, and by how much."""
    settings = config(width, ffn)
    model = build_model(settings)
    base, delta = build_model(config(BASE, 96)), build_model(config(2 * BASE, 192))
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False, do_assert=False)
    return model, settings


def by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


# The last one grows the FFN twice as fast as the model.
@pytest.mark.parametrize(("width", "ffn"), [(32, 96), (64, 192), (128, 384), (512, 1536), (128, 768)])
def test_rate_and_decay_of_every_tensor_are_mups(width: int, ffn: int) -> None:
    model, settings = shaped(width, ffn)
    ours = by_parameter(build_optimizer(model, settings, "cpu"))
    theirs = by_parameter(mup.MuAdamW(model.parameters(), lr=LR, weight_decay=DECAY))
    assert len(ours) == len(theirs) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        mine, its = ours[id(parameter)], theirs[id(parameter)]
        assert mine["lr"] == pytest.approx(its["lr"], rel=1e-12), name
        # mup decays vectors like everything else unless it is told not to; here they never are.
        decay = its["weight_decay"] if parameter.dim() > 1 else 0.0
        assert mine["weight_decay"] == pytest.approx(decay, rel=1e-12), name


@pytest.mark.parametrize("width", [32, 512])
def test_init_and_output_multiplier_are_mups(width: int) -> None:
    model, _ = shaped(width, 3 * width)
    roles = model.roles()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.manual_seed(0)
            plain = torch.empty_like(parameter).normal_()
            torch.manual_seed(0)
            mup.normal_(parameter, std=0.05)  # the same numbers, scaled by mup
            torch.testing.assert_close(parameter.detach(), plain * model.rules.roles[roles[name]].init_std)
    assert model.head is not None
    assert model.rules.output_multiplier == pytest.approx(1 / model.head.weight.infshape.width_mult(), rel=1e-12)
