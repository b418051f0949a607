"""How a model is compiled: as one graph where every step is the same, block by block where a trunk draws its depth.

One graph per depth would be compiled for every depth that is drawn, until torch gives up and runs the rest uncompiled.
Compiled by itself, a block has one graph for all its applications, and the blocks of one trunk share it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanogpt.model.block import Block
from nanogpt.model.context import Context
from nanogpt.model.gpt import GPT, Losses


def compiled_losses(model: GPT) -> Callable[[Tensor, Tensor], Losses]:
    """`model.losses`, compiled for training. Evaluation calls the model itself and is not compiled either way."""
    if model.trunk.one_graph:
        return torch.compile(model.losses)
    compiled = torch.compile(Block.forward)
    for block in model.trunk.unique():
        # On the instance, so that hooks run as ever, outside of the graph.
        vars(block)["forward"] = _ForTraining(block, compiled)
    return model.losses


class _ForTraining:
    """A block's forward pass: the compiled one while it trains."""

    def __init__(self, block: Block, compiled: Callable[..., Tensor]) -> None:
        self._block, self._compiled = block, compiled

    def __call__(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        if not self._block.training:
            return Block.forward(self._block, x_BTD, context, application)
        # The number of the application and what earlier ones left in the context differ from call to call: a graph
        # that saw them would be compiled anew for each.
        own: Any = dataclasses.replace(context, routed=[])
        x_BTD = self._compiled(self._block, x_BTD, own, 0)
        context.routed += [routed._replace(application=application) for routed in own.routed]
        return x_BTD
