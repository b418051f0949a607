"""Statistics of a training step: how large activations, gradients, weights and updates are, block by block.

Activations are counted by application (a block used twice has two), the others by unique block.
"""

from typing import Any

import torch
from torch import Tensor

from nanogpt.model.gpt import GPT


class Probes:
    """Hooks on a model's blocks that do nothing until `enabled` is set, and nothing at all at evaluation.

    Set `enabled` before a step's forward pass; call `collect` after backward, before the optimizer's step, and
    `collect_updates` after it. With several micro-batches the activations are the last one's. The hooks stay in place
    and read a flag, because a compiled model sees the hooks there were when it was compiled, but follows the flag.
    """

    def __init__(self, model: GPT) -> None:
        self.enabled = False
        self._model = model
        self._outputs: list[Tensor] = []
        self._before: list[Tensor] = []  # the matrices of each block before the step, while a step is probed
        model.trunk.register_forward_pre_hook(self._begin)
        for block in model.trunk.blocks:
            block.register_forward_hook(self._note)

    def _begin(self, trunk: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.enabled and trunk.training:
            self._outputs = []

    def _note(self, block: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.enabled and block.training:
            self._outputs.append(_rms(output.detach()))

    def collect(self) -> dict[str, float]:
        """`activation_rms.<application>`, `gradient_norm.<block>`, `weight_rms.<block>` (matrices); {} when off."""
        outputs, self._outputs = self._outputs, []
        if not self.enabled:
            return {}
        trunk = self._model.trunk
        assert len(outputs) == len(trunk.plan(trunk.schedule())), "one activation per application of a block"
        statistics = {f"activation_rms.{index}": rms for index, rms in enumerate(outputs)}
        for index, block in enumerate(self._model.trunk.blocks):
            gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
            statistics[f"gradient_norm.{index}"] = torch.nn.utils.get_total_norm(gradients)
        self._before = [_matrices(block) for block in self._model.trunk.blocks]
        statistics |= {f"weight_rms.{index}": _rms(matrices) for index, matrices in enumerate(self._before)}
        return _read(statistics)

    def collect_updates(self) -> dict[str, float]:
        """`update_rms.<block>`: how far the step since `collect` moved the matrices, decay included; {} when off."""
        before, self._before = self._before, []
        if not before:
            return {}
        moves = [_matrices(block).sub_(old) for block, old in zip(self._model.trunk.blocks, before, strict=True)]
        return _read({f"update_rms.{index}": _rms(move) for index, move in enumerate(moves)})


def _matrices(block: torch.nn.Module) -> Tensor:
    """A copy of all matrices of a block, end to end. Gains start at 1 and would hide what the matrices do.

    The biases of experts are stacked, and no matrix for that.
    """
    named = block.named_parameters()
    return torch.cat([p.detach().flatten() for name, p in named if p.dim() > 1 and not name.endswith("bias")])


def _read(statistics: dict[str, Tensor]) -> dict[str, float]:
    """The numbers themselves, in one wait for the device and not one per number."""
    values = torch.stack([value.float() for value in statistics.values()]).tolist()
    return dict(zip(statistics, values, strict=True))


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()
