"""The processes that train one run together: who this one is, which rows it takes, and what all agree on.

Each process is a rank under torchrun. A team of one is a run of its own, and nothing here costs it anything.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from nanogpt.data.stream import Batch
from nanogpt.ranks import is_rank, local_rank, rank, ranks_started

# A rank that waits this long for another gives the run up; a dead one is noticed at once, by its closed connection.
PATIENCE = timedelta(minutes=30)
CAPTAIN_VARIABLE = "NANOGPT_CAPTAIN"  # set for ranks whose captain writes how they ended where they leave it to it
_PEERS_GONE = re.compile("Connection closed by peer|Connection reset by peer|Broken pipe|Read error|NCCL")

Made = TypeVar("Made")


class PeersLostError(RuntimeError):
    """The run's other processes are gone; whoever started them knows why."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """`rank` of `size` processes; their messages travel on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """The leader writes the run's files and speaks for the team."""
        return self.rank == 0

    def rows_of(self, batch: Batch) -> Batch:
        """This rank's share of a batch: consecutive rows, as many as every other rank's."""
        share = len(batch.x_BT) // self.size
        rows = slice(self.rank * share, (self.rank + 1) * share)
        return batch if self.size == 1 else Batch(batch.x_BT[rows], batch.y_BT[rows])

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; all ranks get the same answer."""
        return flag if self.size == 1 else self.sums([flag])[0] > 0

    def means(self, values: Sequence[float]) -> list[float]:
        """The means over ranks, the same bits on each."""
        return list(values) if self.size == 1 else [total / self.size for total in self.sums(values)]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over ranks, in float64 where the device has it."""
        if self.size == 1:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return self.add(torch.tensor(list(map(float, values)), dtype=dtype, device=self.device)).tolist()

    def gather(self, value: float) -> list[float]:
        """The value of every rank, in their order."""
        mine = [0.0] * self.size
        mine[self.rank] = value
        return self.sums(mine)

    def in_turn(self, act: Callable[[], Made]) -> Made:
        """What all ranks make, the leader before the others: what it leaves on disk they find there."""
        made = act() if self.leads else None
        self.any(False)
        return made if made is not None else act()

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor itself, summed over ranks in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


ALONE = Team()


def leave_to_captain(problem: Exception) -> None:
    """Raises PeersLostError for a problem that is only that of having lost the others, where a captain sees to it.

    The captain gets the problem by torchrun's own way: it may be that no process died, and that it is the cause.
    """
    if ranks_started() == 1 or CAPTAIN_VARIABLE not in os.environ:
        return
    if isinstance(problem, RuntimeError) and _PEERS_GONE.search(str(problem)):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(problem)
        first = str(problem).splitlines()[0]
        raise PeersLostError(f"rank {rank()}: lost the run's other processes: {first}") from problem


def local_device(device: torch.device) -> torch.device:
    """The device of this rank: each has a GPU of its own."""
    if device.type != "cuda" or not is_rank():
        return device
    return torch.device("cuda", local_rank())


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Meet the other ranks: NCCL where each has a GPU, gloo elsewhere. A process of its own is a team of one.

    Ranks that have met already stay together afterwards.
    """
    if not is_rank():
        yield ALONE
        return
    if torch.distributed.is_initialized():
        yield Team(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, timeout=PATIENCE, device_id=device if device.type == "cuda" else None)
    team = Team(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    yield team
    # Not in a `finally`: after an error the others may be gone, and a farewell to them would wait for nothing.
    torch.distributed.destroy_process_group()
