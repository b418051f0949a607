"""How many runs a worker of this machine trains at a time, and with how many threads each."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.devices import uses_gpu, visible_gpus
from experiments.launchers.base import Job, available_cores
from experiments.launchers.settings import LocalSettings
from experiments.lock import LockedRun
from nanogpt.config import UserError


@dataclass(frozen=True)
class Slots:
    """`count` runs at a time of `threads` threads, each on `gpus_per_run` GPUs where runs use any."""

    count: int
    threads: int
    gpus_per_run: int = 0


def slots_for(
    job: Job, runs: Sequence[LockedRun], cores: int | None = None, gpus: Sequence[str] | None = None
) -> Slots:
    """Slots from GPUs where runs use them, else from cores; never more than runs, whose threads would then be few.

    Raises UserError when one run wants more GPUs than there are.
    """
    cores = available_cores() if cores is None else cores
    settings = job.settings if isinstance(job.settings, LocalSettings) else LocalSettings()
    if any(map(uses_gpu, runs)):
        gpus = visible_gpus() if gpus is None else gpus
        if len(gpus) < settings.nproc:
            raise UserError(f"launcher.nproc: {settings.nproc}: one run wants more GPUs than there are ({len(gpus)})")
        most, per_run = len(gpus) // settings.nproc * settings.slots_per_gpu, settings.nproc
        count = min(job.at_a_time or most, most)
    else:
        count, per_run = job.at_a_time or max(1, min(cores // settings.nproc, len(runs) or 1)), 0
    threads = settings.threads or max(1, cores // (count * settings.nproc))
    return Slots(count, threads, per_run)
