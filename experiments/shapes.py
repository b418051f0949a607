"""Compiled runs: one cache per study, and one run of each new shape first, whose kernels its siblings then find there.

`torch.compile` spends tens of seconds on a shape that is new to its cache and one or two on one that is not. Two files
per shape in the cache's folder tell every worker on any host where things stand: `<shape>.first` names the run that
compiles it, `<shape>.warm` says that it has been compiled. Who compiles is only advice: should two workers begin at
once, both compile, and nothing is lost but time.
"""

import contextlib
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from experiments.lease import link_text
from experiments.lock import LockedRun
from experiments.store import StudyFolder, state_of
from nanogpt.config import canonical_json
from nanogpt.record import attempt_folder, write_atomic

CACHE = ".compile-cache"
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compiles(run: LockedRun) -> bool:
    return bool(run.config["runtime"].get("compile"))


def use_cache(study: StudyFolder, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the children of this process share the study's cache, unless a person has named one. Makes no folder."""
    if any(map(compiles, study.runs())):
        environment.setdefault(VARIABLE, str((study.path / CACHE).resolve()))


def shape_of(run: LockedRun) -> str:
    """Equal for runs that compile to the same kernels: the model, the micro-batch, the numbers' format, the device."""
    config, runtime = run.config, run.config["runtime"]
    micro_batch = runtime.get("micro_batch_size") or config["train"]["batch_size"]
    parts = [config["model"], config["parametrization"], micro_batch, config["train"]["precision"]]
    parts += [runtime.get("device"), runtime.get("attention"), runtime.get("expert_matmul")]
    return sha256(canonical_json(parts).encode()).hexdigest()[:12]


@dataclass
class Shapes:
    """Which runs had better wait until a sibling of their shape has compiled it."""

    study: StudyFolder

    def __post_init__(self) -> None:
        self._home = self.study.path / CACHE / "shapes"
        self._warm: set[str] = set()

    def leaders_first(self, runs: Sequence[LockedRun]) -> list[LockedRun]:
        """The first run of each shape, then the others, each in the order given. Nothing changes where none compile."""
        firsts: dict[str, str] = {}
        for run in runs:
            if compiles(run):
                firsts.setdefault(shape_of(run), run.id)
        leaders = set(firsts.values())
        return [run for run in runs if run.id in leaders] + [run for run in runs if run.id not in leaders]

    def may_start(self, run: LockedRun) -> bool:
        """Whether the run's shape is compiled, or this run is the one to do it; asked right before a claim."""
        if not compiles(run) or self._is_warm(shape := shape_of(run)):
            return True
        first = self._home / f"{shape}.first"
        with contextlib.suppress(OSError):
            self._home.mkdir(parents=True, exist_ok=True)
            if link_text(run.name, first):
                return True
            name = first.read_text(encoding="utf-8")
            if name != run.name and state_of(self.study.path / name).status == "running":
                return False
            write_atomic(first, run.name, durable=False)
        return True

    def note_progress(self, run: LockedRun, generation: int) -> None:
        """A run that has logged a step has compiled its shape."""
        if compiles(run) and not self._is_warm(shape := shape_of(run)):
            history = attempt_folder(self.study.folder(run), generation) / "history.jsonl"
            with contextlib.suppress(OSError):
                if history.stat().st_size:
                    (self._home / f"{shape}.warm").touch()

    def _is_warm(self, shape: str) -> bool:
        if shape not in self._warm and (self._home / f"{shape}.warm").exists():
            self._warm.add(shape)
        return shape in self._warm
