"""Compiled training computes what uncompiled training does, and a depth drawn anew is no reason to compile again.

Needs a C++ compiler for torch's CPU backend; the backend `aot_eager` traces alike and needs none, so that it is used.
All of it is slow: a few minutes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from nanogpt.config import Config
from nanogpt.model import GPT, build_model, compiled_losses
from nanogpt.model import compiling as module

TRUNKS = {
    "stack": {"kind": "stack"},
    "shared": {"kind": "shared"},
    "recurrent": {"kind": "recurrent", "depth": "poisson_lognormal", "state_init": "like_embed"},
    "noise": {"kind": "recurrent", "state_init": "like_embed"},
    "fixed": {"kind": "recurrent", "inject": "add", "backprop_loops": 2},
    "truncated": {"kind": "recurrent", "depth": {"kind": "lognormal", "mean_loops": 6}, "backprop_loops": 2},
    "flat": {"kind": "random2d"},
    "hierarchical": {"kind": "random2d", "order": "hierarchical"},
}
STEPS = 12
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module.torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make(trunk: dict[str, Any]) -> Config:
    layers = {"n_layer": 3} if trunk["kind"] in ("stack", "shared") else {}
    shape = {"n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11, "trunk": trunk, **layers}
    return Config.model_validate({"model": shape, "train": {"max_iters": 10}})


def losses(model: GPT, forward: Any) -> list[float]:
    """The loss of each step, and the gradients' norm."""
    idx = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for step in range(STEPS):
        model.at_step(step)
        loss = forward(idx, idx.roll(-1, 1)).total
        loss.backward()
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        found += [loss.item(), torch.stack(norms).norm().item()]
        model.zero_grad()
    return found


@pytest.mark.filterwarnings("default")  # torch hides some of its own, which it cannot where they are errors
@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=list(TRUNKS))
def test_compiled_training_is_the_same_and_is_compiled_a_few_times(trunk: dict[str, Any]) -> None:
    plain, compiled = build_model(make(trunk)), build_model(make(trunk))
    forward = compiled_losses(compiled)
    assert losses(compiled, forward) == pytest.approx(losses(plain, plain.losses), rel=1e-4)
    most = 1 if plain.trunk.one_graph else 2 + (trunk.get("backprop_loops") is not None)
    assert 0 < counters["stats"]["unique_graphs"] <= most
    assert not counters["graph_break"]
    before = counters["stats"]["unique_graphs"]
    compiled.eval()
    compiled(torch.zeros(1, 5, dtype=torch.long))
    assert counters["stats"]["unique_graphs"] == before
