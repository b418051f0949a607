"""Parameters that FSDP2 has cut over processes: telling them apart, putting one together, cutting one up.

torch's DTensor takes a third of a second to import, so only those who meet one pay for it.
"""

from typing import Any

from torch import Tensor


def is_shard(tensor: Any) -> bool:
    """Whether a tensor is this rank's part of a DTensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """The numbers that this rank holds; writing into them writes into the parameter."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """The whole tensor. Every rank has to ask."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def together(part: Tensor, like: Any) -> Tensor:
    """The whole tensor of which every rank gives its part, cut as `like` is."""
    from torch.distributed.tensor import DTensor

    parts = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return parts.full_tensor()


def shard_like(like: Any, tensor: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, cut as `like` is (as it stands where that is no shard)."""
    from torch.distributed.tensor import distribute_tensor

    if not is_shard(like):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
