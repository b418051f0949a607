"""How many runs a worker of this machine trains at a time, and with how many threads each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.devices import uses_gpu, visible_gpus
from experiments.launchers.base import Job, available_cores
from experiments.launchers.settings import LocalSettings, with_processes
from experiments.lock import LockedRun
from experiments.store import StudyFolder
from nanogpt.config import UserError


@dataclass(frozen=True)
class Slots:
    """`count` runs at a time of `threads` threads, each on `gpus_per_run` GPUs where runs use any."""

    count: int
    threads: int
    gpus_per_run: int = 0


def slots_for(
    job: Job,
    runs: Sequence[LockedRun],
    cores: int | None = None,
    gpus: Sequence[str] | None = None,
    to_come: int = 0,
    device: str = "",
) -> Slots:
    """Slots from GPUs where runs use them, else from cores; never more than runs, whose threads would then be few.

    `to_come` is how many trials are still to be proposed, and `device` what they ask for.
    Raises UserError when one run wants more GPUs than there are.
    """
    cores = available_cores() if cores is None else cores
    settings = job.settings if isinstance(job.settings, LocalSettings) else LocalSettings()
    wanting = any(map(uses_gpu, runs))
    if wanting or (to_come and device != "cpu"):
        gpus = visible_gpus() if gpus is None else gpus
    if gpus is not None and (wanting or (to_come and device != "cpu" and gpus)):
        if len(gpus) < settings.nproc:
            raise UserError(f"runtime.nproc: {settings.nproc}: one run wants more GPUs than there are ({len(gpus)})")
        most, per_run = len(gpus) // settings.nproc * settings.slots_per_gpu, settings.nproc
        count = min(job.at_a_time or most, most)
    else:
        count, per_run = job.at_a_time or max(1, min(cores // settings.nproc, len(runs) + to_come or 1)), 0
    threads = settings.threads or max(1, cores // (count * settings.nproc))
    return Slots(count, threads, per_run)


def sized(job: Job, study: StudyFolder) -> Job:
    """The job with room for the processes of the study's largest run, those of a search's proposals among them."""
    search = study.lock.search
    proposed = (search.base.get("runtime") or {}).get("nproc", 1) if search is not None else 1
    nproc = max([int(proposed), *(run.nproc for run in study.runs())])
    return replace(job, settings=with_processes(job.settings, nproc))


def study_slots(job: Job, study: StudyFolder, gpus: Sequence[str] | None = None) -> Slots:
    """The slots for a study's runs, those that a search has yet to propose among them."""
    job = sized(job, study)
    search = study.lock.search
    device = str((search.base.get("runtime") or {}).get("device", "")) if search is not None else ""
    return slots_for(job, study.runs(), gpus=gpus, to_come=study.to_propose, device=device)
