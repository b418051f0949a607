"""How a launcher would train a study: workers, runs at a time, devices held; from the time of each run that of all."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.devices import uses_gpu
from experiments.launchers.base import Job, available_cores
from experiments.launchers.settings import LocalSettings, RaySettings
from experiments.launchers.slots import sized, study_slots
from experiments.launchers.slurm_settings import SlurmSettings
from experiments.lock import LockedRun
from experiments.planner.amounts import runs_words
from experiments.store import StudyFolder

START_SECONDS = 3.0  # until a worker has loaded torch and forks its first run


@dataclass(frozen=True)
class Crew:
    """`workers` that each train `slots` runs at a time with `threads` threads. `devices` are what is paid for by the
    hour: GPUs where runs use any, else machines. `here` says whether they are on this machine."""

    launcher: str
    workers: int
    slots: int
    threads: int
    devices: int
    device: str
    here: bool

    @property
    def at_a_time(self) -> int:
        return self.workers * self.slots

    def __str__(self) -> str:
        runs = f"{runs_words(self.slots)} at a time"
        return f"{self.launcher}, " + (f"{self.workers} workers of {runs}" if self.workers > 1 else runs)


def crew_of(job: Job, study: StudyFolder, pretend_gpus: bool = False) -> Crew:
    """The crew that a launcher would start for a study, `pretend_gpus` as if this machine had some for one run.

    Queueing is not foreseen: workers of a batch system count as if all of them started at once.
    """
    job = sized(job, study)
    runs, settings = study.runs(), job.settings
    on_gpu = any(map(uses_gpu, runs))
    device = "GPU" if on_gpu else "machine"
    if isinstance(settings, LocalSettings):
        gpus = [str(index) for index in range(settings.nproc)] if pretend_gpus else None
        slots = study_slots(job, study, gpus)
        held = -(-slots.count // settings.slots_per_gpu) * settings.nproc if on_gpu else 1
        return Crew(settings.kind, 1, slots.count, slots.threads, held, device, here=True)
    if isinstance(settings, SlurmSettings):
        count = settings.slots(job.jobs)
        workers = min(settings.workers, max(1, -(-len(runs) // count)))
        held = workers * settings.nodes * (settings.gpus if on_gpu else 1)
        return Crew(settings.kind, workers, count, max(1, settings.cpus // count), max(1, held), device, here=False)
    if isinstance(settings, RaySettings):
        count = job.at_a_time or max(1, int(settings.gpus if on_gpu else settings.cpus))
        held = round(settings.workers * settings.gpus) if on_gpu else settings.workers
        threads = max(1, int(settings.cpus) // count)
        return Crew(settings.kind, settings.workers, count, threads, max(1, held), device, here=False)
    return Crew(settings.kind, 1, 1, available_cores(), 1, device, here=True)


def makespan(runs: Sequence[LockedRun], seconds: Callable[[LockedRun], float], crew: Crew) -> float:
    """Wall time of all runs: the longest first, as workers take them, each slot the next run when it is free."""
    if not runs:
        return 0.0
    free = [START_SECONDS] * min(crew.at_a_time, len(runs))
    heapq.heapify(free)
    for run in sorted(runs, key=lambda run: -run.flops):
        heapq.heapreplace(free, free[0] + seconds(run))
    return max(free)
