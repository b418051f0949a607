"""Several processes that share one evaluation: how the ranks are called, where each works, and when they give up."""

import argparse
import os

import torch

from nanogpt.captain import EXIT_FAILED, check_devices
from nanogpt.config import UserError
from nanogpt.ranks import is_rank, local_rank, ranks_started
from nanogpt.stop import StopRequest, watch_captain
from nanogpt.team import CAPTAIN_VARIABLE

FLAGS = (
    "data", "text", "items", "split", "stride", "limit", "batch_size", "nproc", "device", "precision", "out",
    "lm_eval", "include_path", "ranks",
)  # fmt: skip


def words_of(arguments: argparse.Namespace) -> list[str]:
    """The command line of the ranks: that of the person's command."""
    given = {name: getattr(arguments, name) for name in FLAGS}
    return ["eval", arguments.place, *arguments.names] + [
        f"--{name}={value}" for name, value in given.items() if value is not None
    ]


def refuse_torchrun() -> None:
    """Raises UserError where a person's own torchrun started this process."""
    if is_rank() and CAPTAIN_VARIABLE not in os.environ:
        raise UserError("eval: torchrun is not needed: --nproc N starts the processes")


class _Leave(StopRequest):
    """An evaluation has nothing to save: it ends at once."""

    def ask(self, reason: str) -> None:
        os._exit(EXIT_FAILED)


def leave_with_captain() -> None:
    """End this rank when the command that started it is gone."""
    watch_captain(_Leave())


def take_own_gpu() -> None:
    """From here on `cuda` means this rank's GPU, where there are enough."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= ranks_started():
        torch.cuda.set_device(local_rank())


def check_own_device(device: torch.device, asked: str) -> None:
    """Raises UserError where ranks would share a device."""
    check_devices(asked if asked != "auto" else device.type, ranks_started())
