"""The model as a team trains it: whole on every rank (DDP), or in shards (FSDP2), with one form of state for all.

A checkpoint always holds whole tensors, so that a run goes on with any number of processes and either method.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt.model import GPT, Losses, compiled_losses
from nanogpt.optim.shards import shard_like, whole
from nanogpt.team import Team

Synchronize = Callable[[bool], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Replica:
    """`forward` gives the losses of a micro-batch; the last backward pass of a step runs within `synchronize(True)`."""

    forward: Callable[[Tensor, Tensor], Losses]
    synchronize: Synchronize
    sharded: bool = False

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """State with whole tensors in place of shards. Every rank has to ask, and in the same order."""
        return _whole(state) if self.sharded else state

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load whole state into an optimizer, whose parameters may be shards."""
        optimizer.load_state_dict(_cut(optimizer, state) if self.sharded else state)


def alone(last: bool) -> contextlib.AbstractContextManager[None]:
    """How a process of its own synchronizes its gradients."""
    return contextlib.nullcontext()


def spread(model: GPT, team: Team, method: str, compiled: bool) -> Replica:
    """Make the ranks' models one. Under fsdp2 the parameters become shards, so the optimizer is built afterwards."""
    forward: Any = compiled_losses(model) if compiled else model.losses
    if team.size == 1:
        synchronize: Synchronize = alone
    elif method == "ddp":
        forward = _data_parallel(model, team)
        synchronize = _ddp_sync(forward)
    else:
        _shard(model, team)
        forward, synchronize = model.losses, _fsdp_sync(model)
    if compiled and team.size > 1 and model.trunk.one_graph:  # else its blocks are compiled by now, in place
        forward = torch.compile(forward)
    return Replica(forward, synchronize, team.size > 1 and method == "fsdp2")


class _Step(nn.Module):
    """The losses as a forward pass, which is where DistributedDataParallel hooks in."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Losses:
        return self.model.losses(idx_BT, targets_BT)


def _data_parallel(model: GPT, team: Team) -> DistributedDataParallel:
    # Buffers are functions of the shape, or kept equal by those who change them: nothing to send with every pass.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.13
    quiet: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        _Step(model),
        device_ids=[team.device.index] if team.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=model.trunk.skips_blocks,
        **quiet,
    )


def _ddp_sync(wrapped: DistributedDataParallel) -> Synchronize:
    return lambda last: contextlib.nullcontext() if last else wrapped.no_sync()


def _shard(model: GPT, team: Team) -> None:
    """One group of parameters per block, gathered when the block is used, and one for all that is outside.

    A tied embedding and head are one tensor of the outer group. Blocks that share tensors are left to it as well.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(team.device.type, (team.size,))
    owned = [id(parameter) for block in model.trunk.unique() for parameter in block.parameters()]
    if len(set(owned)) == len(owned):
        for block in model.trunk.unique():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("losses", "scores"):
        register_fsdp_forward_method(model, method)


def _fsdp_sync(model: Any) -> Synchronize:
    @contextlib.contextmanager
    def synchronize(last: bool) -> Iterator[None]:
        model.set_requires_gradient_sync(last)
        yield

    return synchronize


def _whole(value: Any) -> Any:
    if isinstance(value, Tensor):
        return whole(value)
    if isinstance(value, dict):
        return {key: _whole(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_whole(child) for child in value]
    return value


def _cut(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with every entry that has its parameter's shape cut as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = [index for group in state["param_groups"] for index in group["params"]]
    pairs = zip(order, parameters, strict=True)
    entries = {
        index: _cut_like(parameter, state["state"][index]) for index, parameter in pairs if index in state["state"]
    }
    return {**state, "state": entries}


def _cut_like(parameter: Tensor, entries: dict[str, Any]) -> dict[str, Any]:
    return {
        name: shard_like(parameter, entry) if isinstance(entry, Tensor) and entry.shape == parameter.shape else entry
        for name, entry in entries.items()
    }
