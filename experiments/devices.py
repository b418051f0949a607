"""Which GPUs a worker may use, and which of them each of its runs gets. CUDA itself is never touched here."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.lock import LockedRun
from nanogpt.config import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environment: Mapping[str, str] = os.environ, driver: Path = _DRIVER) -> list[str]:
    """The GPUs this process may use, by number or UUID: those it was given, else all that the driver knows."""
    given = environment.get(VISIBLE)
    if given is not None:
        return [name for name in re.split(r"\s*,\s*", given.strip()) if name and name != "-1"]
    if driver.is_dir():
        return [str(index) for index in range(len(list(driver.iterdir())))]
    return _listed_by_tool()


def _listed_by_tool() -> list[str]:
    """What nvidia-smi lists, where the driver's folder is hidden from a container."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in lines))]


def uses_gpu(run: LockedRun) -> bool:
    """Whether a run was resolved for a CUDA device. Runs on CPUs share nothing, however many GPUs there are."""
    return str(run.config["runtime"].get("device", "")).startswith("cuda")


@dataclass
class GpuPool:
    """Shares GPUs out among runs: `per_run` to each, and at most `slots_per_gpu` runs on one."""

    gpus: list[str]
    per_run: int = 1
    slots_per_gpu: int = 1
    _used: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.gpus and self.per_run > len(self.gpus):
            raise UserError(f"worker: a run wants {self.per_run} GPUs, and there are {len(self.gpus)}")

    @property
    def has_room(self) -> bool:
        """Whether one more run finds its GPUs. Without any GPU there is nothing to share."""
        return not self.gpus or len(self._free()) >= self.per_run

    def _free(self) -> list[str]:
        return [gpu for gpu in self.gpus if self._used[gpu] < self.slots_per_gpu]

    def take(self) -> list[str] | None:
        """The GPUs of the next run, the least used first; None where there are none to share out."""
        if not self.gpus:
            return None
        taken = sorted(self._free(), key=lambda gpu: self._used[gpu])[: self.per_run]
        self._used.update(taken)
        return taken

    def give_back(self, gpus: list[str] | None) -> None:
        self._used.subtract(gpus or [])
