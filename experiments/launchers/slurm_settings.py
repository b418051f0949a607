"""The settings of the `slurm` launcher, held against Slurm's rules before anything is submitted."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from experiments.supervise import seconds_of

# Options that the launcher writes from other settings, or whose change would break how workers stop and go on.
OURS = {
    *("array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "chdir", "wrap", "wait"),
    *("partition", "account", "qos", "constraint", "mem", "time", "cpus-per-task", "nodes", "gres"),
    *("ntasks", "ntasks-per-node", "parsable", "test-only", "export", "export-file", "clusters", "cluster"),
}
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_ENDLESS = ("UNLIMITED", "INFINITE")


def _slurm_seconds(text: str) -> float:
    """Seconds of a time as Slurm writes it: M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises ValueError for anything else."""
    if text.upper() in _ENDLESS:
        return float("inf")
    found = _CLOCK.fullmatch(text)
    if found is None or (found["days"] is None and ":" not in found["clock"]):
        raise ValueError(f"expected a time such as 90m, 4h, 1d, or Slurm's D-HH:MM:SS, got {text!r}")
    parts = [int(part) for part in found["clock"].split(":")]
    # With days, the first number is hours; without, the last one is seconds.
    padding = [0] * (3 - len(parts))
    hours, minutes, seconds = [*parts, *padding] if found["days"] else [*padding, *parts]
    return ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _slurm_time(value: Any) -> str:
    """A time limit as Slurm wants it. A plain number is seconds, as everywhere in a study, not Slurm's minutes."""
    try:
        seconds = round(seconds_of(value))
    except ValueError:
        text = str(value).strip()
        _slurm_seconds(text)
        return text
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"


def _word(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is not None and not (isinstance(text, str) and re.fullmatch(r'[^\s"\\]+', text)):
        raise ValueError(f"expected a word without spaces and quotes, got {value!r}")
    return text


def _memory(value: Any) -> Any:
    """Slurm's own notation: a whole number of megabytes, or with K, M, G or T."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is not None and not (isinstance(text, str) and re.fullmatch(r"\d+[KMGTkmgt]?", text)):
        raise ValueError(f"expected a whole amount of memory such as 500M or 8G, got {value!r}")
    return text


def _line(value: Any) -> str:
    text = "" if value is None else str(value)
    if re.search(r'[\n\r"\\]', text):
        raise ValueError(f"expected one line without quotes, got {value!r}")
    return text


Count = Annotated[int, Field(strict=True, ge=1)]
Amount = Annotated[int, Field(strict=True, ge=0)]
_AsWritten = WithJsonSchema({"type": ["string", "integer"]})  # what an editor may find in the file
Word = Annotated[str, BeforeValidator(_word), _AsWritten]


class SlurmSettings(BaseModel):
    """An array of workers under Slurm. `cpus`, `gpus` and `mem` are of one worker, or of each of its nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    outlives_driver: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = True

    kind: Literal["slurm"] = "slurm"
    jobs: Count | None = Field(None, description="Runs at a time on one worker; default: from GPUs, else cores.")
    workers: Count = Field(1, description="Workers, each a task of the job array.")
    partition: Word | None = Field(None, description="As sbatch's option; so are account, qos, constraint and mem.")
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    mem: Annotated[str | None, BeforeValidator(_memory), WithJsonSchema({"type": ["string", "integer", "null"]})] = (
        Field(None, description="Memory, such as 8G; default: the site's.")
    )
    time: Annotated[str, BeforeValidator(_slurm_time), _AsWritten] = Field(
        "1:00:00", description="Most time of a worker before it is requeued: 4h, 1d, or Slurm's D-HH:MM:SS."
    )
    cpus: Count = Field(1, description="Cores.")
    gpus: Amount = Field(0, description="GPUs.")
    nodes: Count = Field(1, description="Nodes of one worker; more than one only with nproc.")
    nproc: Count = Field(1, description="Processes of each run, over all nodes, a GPU for each; as runtime.nproc.")
    grace: Amount = Field(60, description="Seconds between Slurm's signal and the time limit.")
    setup: list[str] = Field([], description="Shell lines that run first, such as `module load cuda`.")
    sbatch: dict[str, Annotated[str, BeforeValidator(_line), _AsWritten]] = Field(
        {}, description="Further options of sbatch, without dashes; one that takes no value has an empty one."
    )
    max_array: Count | None = Field(None, description="Most tasks of one array; default: the site's limit.")

    @field_validator("sbatch")
    @classmethod
    def _options_are_not_ours(cls, options: dict[str, str]) -> dict[str, str]:
        for name in options:
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"expected long options without dashes in front, such as nodelist, got {name!r}")
            if name in OURS:
                raise ValueError(f"expected options other than the launcher's own, got {name!r}")
        return options

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.grace >= _slurm_seconds(self.time):
            raise ValueError(f"expected a grace below the time limit, got grace {self.grace} s and time {self.time}")
        if self.nodes > 1 and (self.nproc < self.nodes or self.nproc % self.nodes):
            raise ValueError(
                f"expected nproc to be a multiple of nodes, got nproc {self.nproc} and nodes {self.nodes}; "
                "for workers that train on a node each, set workers"
            )
        if self.gpus and self.nproc // self.nodes > self.gpus:
            raise ValueError(
                f"expected at least as many gpus as a run has processes on a node, got gpus {self.gpus} "
                f"and nproc {self.nproc} over nodes {self.nodes}"
            )
        return self

    @property
    def nproc_per_node(self) -> int:
        return self.nproc // self.nodes

    def slots(self, jobs: int | None) -> int:
        """Runs at a time on one worker; a run that spans nodes takes the whole worker."""
        if self.nodes > 1:
            return 1
        return jobs or self.jobs or max(1, (self.gpus or self.cpus) // self.nproc)
