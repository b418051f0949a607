"""The section `launcher:` of a study: which launcher starts its workers, and the settings of each. Nothing heavy."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from experiments.launchers.slurm_settings import SlurmSettings
from experiments.supervise import Place, section_problem
from nanogpt.config import UserError, did_you_mean

Count = Annotated[int, Field(strict=True, ge=1)]
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTkmgt])(?:i?B)?")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    outlives_driver: ClassVar[bool] = False  # whether workers go on when the driver ends
    elsewhere: ClassVar[bool] = False  # whether workers run on other machines than the driver

    jobs: Count | None = Field(None, description="Runs at a time on one worker; default: from cores or GPUs.")
    nproc: Count = Field(
        1, description="Processes of each run, a GPU for each; the same as runtime.nproc of its config."
    )


def memory_bytes(text: str) -> int:
    """Bytes from `500M`, `8G` or `1.5T`, by powers of 1024. Raises ValueError for anything else."""
    found = _MEMORY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected an amount of memory such as 500M or 8G, got {text!r}")
    return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2].upper())))


def _memory(text: str | None) -> str | None:
    if text is not None:
        memory_bytes(text)
    return text


class LocalSettings(_Settings):
    """One worker on this machine."""

    kind: Literal["local"] = "local"
    slots_per_gpu: Count = Field(1, description="Runs that share one GPU.")
    isolation: Literal["fork", "process"] = Field("fork", description="process: a cold start for every run.")
    threads: Count | None = Field(None, description="Threads of one run; default: cores over runs at a time.")


class InProcessSettings(_Settings):
    """One run after another in the driver itself, for a debugger."""

    kind: Literal["inprocess"] = "inprocess"
    jobs: Annotated[int, Field(strict=True, ge=1, le=1)] | None = Field(None, description="One run at a time, always.")


class RaySettings(_Settings):
    """Workers as tasks of a Ray cluster. `cpus`, `gpus` and `memory` are of one worker."""

    elsewhere: ClassVar[bool] = True
    kind: Literal["ray"] = "ray"
    address: str = Field("auto", description="Of the cluster's head, host:port; auto: the cluster this machine is in.")
    workers: Count = Field(1, description="Workers, each a task of the cluster.")
    cpus: Annotated[float, Field(gt=0)] = Field(1, description="Cores of one worker.")
    gpus: Annotated[float, Field(ge=0)] = Field(0, description="GPUs of one worker; 0.5 shares one with another.")
    memory: Annotated[str | None, AfterValidator(_memory)] = Field(None, description="Of one worker, such as 8G.")
    max_retries: Annotated[int, Field(strict=True, ge=-1)] = Field(
        -1, description="How often Ray starts a worker again that was lost with its node; -1: always."
    )
    autoscaling: bool = Field(False, description="Nodes may come later: do not refuse what no node has now.")
    runtime_env: dict[str, Any] = Field({}, description="Ray's runtime environment of the workers, as it is.")


LauncherSettings = LocalSettings | InProcessSettings | SlurmSettings | RaySettings
KINDS: dict[str, type[LauncherSettings]] = {
    "local": LocalSettings,
    "inprocess": InProcessSettings,
    "slurm": SlurmSettings,
    "ray": RaySettings,
}


def check_launcher(value: Any, where: Place = "launcher") -> LauncherSettings:
    """The settings that a name or a mapping with `kind` asks for; None is `local`.

    Raises UserError in one line, with the place and the nearest name.
    """
    if value is None or isinstance(value, str):
        value = {"kind": "local" if value is None else value}
    if not isinstance(value, Mapping):
        raise UserError(f"{_place(where)}: launcher: expected a name or settings with `kind`, got {value!r}")
    kind = value.get("kind", "local")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{_place(where, 'kind')}: launcher: no such launcher {kind!r}{did_you_mean(kind, KINDS)}")
    try:
        return KINDS[kind].model_validate({**value, "kind": kind})
    except ValidationError as error:
        raise UserError(section_problem(error, "launcher", where, list(KINDS[kind].model_fields))) from None


def chosen_launcher(section: Mapping[str, Any] | None, name: str | None = None) -> LauncherSettings:
    """The launcher of a study's section, unless another is named: that one has the defaults of its kind."""
    settings = check_launcher(section)
    return settings if name in (None, settings.kind) else check_launcher(name, "command line")


def with_processes(settings: LauncherSettings, nproc: int) -> LauncherSettings:
    """The settings for runs of which the largest wants `nproc` processes. Raises UserError when they have no room."""
    if nproc == settings.nproc:
        return settings
    try:
        return type(settings).model_validate({**settings.model_dump(exclude_unset=True), "nproc": nproc})
    except ValidationError as error:
        raise UserError(
            section_problem(error, "launcher", "runtime.nproc", list(type(settings).model_fields))
        ) from None


def as_section(settings: LauncherSettings) -> dict[str, Any]:
    """Only what was asked for, so that a later default reaches studies that left it open."""
    return {"kind": settings.kind, **settings.model_dump(mode="json", exclude_unset=True)}


def _place(where: Place, *path: str) -> str:
    return where if isinstance(where, str) else where(*path)
