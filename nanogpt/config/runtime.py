"""The `runtime` section: where and how a run executes. None of it is part of a run's identity."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nanogpt.config.section import NonNegativeFloat, PositiveInt, Section, Shorthand
from nanogpt.config.tracker import NoTracker, TrackerSection

MOST_PROCESSES = 4096


class Checkpoint(Section):
    """Which checkpoints are kept. The newest two are always there while a run can still be resumed."""

    policy: Literal["never", "last", "best", "every_n"] = "last"
    every: PositiveInt | None = Field(None, description="Steps between the kept checkpoints of policy every_n.")
    interval_seconds: NonNegativeFloat = Field(60.0, description="Time between checkpoints; 0 saves at every step.")

    @model_validator(mode="after")
    def _every(self) -> Self:
        if (self.policy == "every_n") != (self.every is not None):
            raise ValueError(f"policy={self.policy} and every={self.every} do not go together; every_n needs `every`")
        return self


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"no such device '{name}'; allowed: auto, cpu, mps, cuda, cuda:N")
    return name


class Runtime(Section):
    """Devices, threads, files and cadences."""

    device: Annotated[str, AfterValidator(_device)] = "auto"
    compile: bool = False
    micro_batch_size: PositiveInt | None = Field(None, description="Sequences per forward pass; default: the batch.")
    nproc: PositiveInt = Field(1, le=MOST_PROCESSES, description="Processes that train the run together, by torchrun.")
    data_parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="With nproc > 1: every process holds the whole model (ddp) or a shard of it (fsdp2)."
    )
    threads: PositiveInt | None = Field(None, le=1024, description="CPU threads; default: what the launcher gives.")
    attention: Literal["auto", "sdpa", "explicit"] = Field(
        "auto", description="auto: explicit matmuls on a CPU up to 1024 tokens, else torch's fused kernel."
    )
    expert_matmul: Literal["auto", "grouped", "loop"] = Field(
        "auto", description="auto: one grouped matmul over all experts where the device has it, else one per expert."
    )
    checkpoint: Annotated[Checkpoint, Shorthand("policy", "last")] = Checkpoint()
    probe_interval: PositiveInt | None = Field(None, description="Steps between activation and gradient statistics.")
    noise_scale_interval: PositiveInt | None = Field(None, description="Steps between gradient noise measurements.")
    log_interval: PositiveInt = Field(10, description="Steps between lines of history.jsonl.")
    tracker: TrackerSection = NoTracker()
    out_dir: str | None = Field(None, description="Folder of the run; default results/train/<name>.<id>.")
    data_dir: str | None = Field(None, description="Where prepared corpora lie; default $NANOGPT_DATA_DIR or data/.")
    resume: Literal["auto", "required"] = Field("auto", description="required: an error when nothing can be resumed.")
    share_trunk: bool = Field(True, description="Workers start this run from a WSD trunk that a run of its study has.")
    branch_from: str | None = Field(None, description="Folder of a run whose WSD trunk this run continues.")
