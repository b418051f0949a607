"""The section `launcher:` of a study: which launcher starts its workers, and the settings of each. Nothing heavy."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.launchers.slurm_settings import SlurmSettings
from experiments.supervise import Place, section_problem
from nanogpt.config import UserError, did_you_mean

Count = Annotated[int, Field(strict=True, ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    outlives_driver: ClassVar[bool] = False  # whether workers go on when the driver ends

    jobs: Count | None = Field(None, description="Runs at a time on one worker; default: from cores or GPUs.")


class LocalSettings(_Settings):
    """One worker on this machine."""

    kind: Literal["local"] = "local"
    nproc: Count = Field(1, description="Processes, so GPUs, of one run.")
    slots_per_gpu: Count = Field(1, description="Runs that share one GPU.")
    isolation: Literal["fork", "process"] = Field("fork", description="process: a cold start for every run.")
    threads: Count | None = Field(None, description="Threads of one run; default: cores over runs at a time.")


class InProcessSettings(_Settings):
    """One run after another in the driver itself, for a debugger."""

    kind: Literal["inprocess"] = "inprocess"


class RaySettings(_Settings):
    """Workers as tasks of a Ray cluster. `cpus`, `gpus` and `memory` are of one worker."""

    kind: Literal["ray"] = "ray"
    address: str = "auto"
    workers: Count = 1
    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    memory: str | None = None
    runtime_env: dict[str, Any] = {}


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


def as_section(settings: LauncherSettings) -> dict[str, Any]:
    """Only what was asked for, so that a later default reaches studies that left it open."""
    return {"kind": settings.kind, **settings.model_dump(mode="json", exclude_unset=True)}


def _place(where: Place, *path: str) -> str:
    return where if isinstance(where, str) else where(*path)
