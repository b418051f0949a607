"""What torchrun told this process of its place among those that it started for one run. Imports no torch."""

import os


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def ranks_started() -> int:
    """How many processes torchrun started for this run; 1 where it started none."""
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if is_rank() else 0


def local_rank() -> int:
    """The same among those on this machine."""
    return int(os.environ["LOCAL_RANK"]) if is_rank() else 0
