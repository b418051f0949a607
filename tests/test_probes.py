"""Probes: present and right for every block, silent when off and at evaluation, without effect on training.

Slow part: about 10 s.
"""

import math

import pytest
import torch

from nanogpt.config import Config
from nanogpt.model import GPT, build_model
from nanogpt.probes import Probes

CONFIG = Config.model_validate(
    {
        "model": {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11},
        "train": {"max_iters": 1},
    }
)


def step(model: GPT, parts: int = 1) -> None:
    idx = torch.arange(32).view(4, 8) % 11
    for part in idx.chunk(parts):
        model.loss(part, part.roll(-1, 1)).backward()


@pytest.mark.parametrize("parts", [1, 2])
def test_every_block_has_finite_statistics(parts: int) -> None:
    model = build_model(CONFIG)
    probes = Probes(model)
    probes.enabled = True
    step(model, parts)
    statistics = probes.collect()
    names = ("activation_rms", "gradient_norm", "weight_rms")
    assert statistics.keys() == {f"{name}.{index}" for name in names for index in range(3)}
    assert all(math.isfinite(value) and value > 0 for value in statistics.values())


def test_statistics_equal_their_definitions() -> None:
    model = build_model(CONFIG)
    probes, outputs = Probes(model), []
    model.trunk.blocks[1].register_forward_hook(lambda block, inputs, output: outputs.append(output.detach()))
    probes.enabled = True
    step(model)
    statistics = probes.collect()
    block = model.trunk.blocks[1]
    gradient = torch.cat([parameter.grad.flatten() for parameter in block.parameters()])
    weights = torch.cat([parameter.flatten() for parameter in block.parameters() if parameter.dim() == 2])
    assert statistics["activation_rms.1"] == pytest.approx(outputs[0].square().mean().sqrt().item(), rel=1e-5)
    assert statistics["gradient_norm.1"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert statistics["weight_rms.1"] == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-5)


def test_updates_are_the_moves_of_the_matrices() -> None:
    model = build_model(CONFIG)
    probes = Probes(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    step(model)
    optimizer.step()
    assert probes.collect_updates() == {}, "off"
    probes.enabled = True
    step(model)
    probes.collect()
    moves = [
        torch.cat([0.5 * parameter.grad.flatten() for parameter in block.parameters() if parameter.dim() == 2])
        for block in model.trunk.blocks
    ]
    optimizer.step()
    expected = {f"update_rms.{index}": move.square().mean().sqrt().item() for index, move in enumerate(moves)}
    # The weights are float32: a move is known to a few parts in 1e-8 of the weight, far larger than itself.
    assert probes.collect_updates() == pytest.approx(expected, rel=1e-2)
    assert probes.collect_updates() == {}, "a step is read once"


def test_nothing_is_kept_when_off_or_at_evaluation() -> None:
    model = build_model(CONFIG)
    probes = Probes(model)
    step(model)
    assert probes.collect() == {}
    probes.enabled = True
    step(model)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))
    assert len(probes.collect()) == 9, "an evaluation in between adds nothing"


def test_probing_does_not_change_the_gradients() -> None:
    plain, probed = build_model(CONFIG), build_model(CONFIG)
    Probes(probed).enabled = True
    step(plain)
    step(probed)
    for left, right in zip(plain.parameters(), probed.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_model_follows_the_switch() -> None:
    torch.compiler.reset()  # what another test compiled in this process is none of this one's business
    model = build_model(CONFIG)
    probes = Probes(model)
    compiled = torch.compile(model.loss, backend="eager")
    idx = torch.arange(32).view(4, 8) % 11
    found = []
    for enabled in (False, True, False, True):
        probes.enabled = enabled
        model.zero_grad()
        compiled(idx, idx).backward()
        found.append(probes.collect())
    assert [len(statistics) for statistics in found] == [0, 9, 0, 9]
    assert found[1] == found[3]
