"""`Config`: the sections put together, with the checks that span more than one of them."""

from typing import Self

from pydantic import Field, model_validator

from nanogpt.config.data import Data
from nanogpt.config.model import Model
from nanogpt.config.parametrization import Parametrization
from nanogpt.config.runtime import MOST_PROCESSES, Runtime
from nanogpt.config.section import NonNegativeInt, Section
from nanogpt.config.training import AdamW, Cosine, Optimizer, Schedule, Train
from nanogpt.config.weights import InitFrom


class Config(Section):
    """One training run. `runtime` says how it is executed; everything else is its identity."""

    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    train: Train
    parametrization: Parametrization = Parametrization()
    init_from: InitFrom = "scratch"
    seed: NonNegativeInt = Field(1337, lt=2**63)
    runtime: Runtime = Runtime()

    @property
    def micro_batch_size(self) -> int:
        return self.runtime.micro_batch_size or max(1, self.train.batch_size // self.runtime.nproc)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        self._check_shares()
        if self.train.batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is not divisible by "
                f"runtime.micro_batch_size={self.micro_batch_size}"
            )
        self._check_processes()
        if self.runtime.noise_scale_interval is not None and self.train.batch_size == 1:
            raise ValueError("runtime.noise_scale_interval: a batch of 1 sequence has no parts to compare; it needs 2")
        low = getattr(self.schedule, "min_lr", 0.0)
        if low > self.optimizer.learning_rate:
            raise ValueError(f"schedule.min_lr={low} is above optimizer.learning_rate={self.optimizer.learning_rate}")
        return self

    def _check_shares(self) -> None:
        """Before the micro-batch, which follows from the shares where none is given."""
        nproc, batch = self.runtime.nproc, self.train.batch_size
        if self.runtime.micro_batch_size is None and batch % nproc:
            allowed = ", ".join(str(count) for count in range(1, min(batch, MOST_PROCESSES) + 1) if batch % count == 0)
            raise ValueError(
                f"runtime.nproc={nproc}: a batch of {batch} sequences cannot be shared equally; allowed: {allowed}"
            )

    def _check_processes(self) -> None:
        nproc, batch, micro = self.runtime.nproc, self.train.batch_size, self.micro_batch_size
        if batch % (nproc * micro):
            raise ValueError(
                f"runtime.nproc={nproc}: the batch of {batch} sequences is {batch // micro} micro-batches of {micro}, "
                f"which {nproc} processes cannot share equally"
            )
        if nproc == 1:
            return
        if self.runtime.noise_scale_interval is not None:
            raise ValueError(f"runtime.noise_scale_interval: measured in one process only; runtime.nproc is {nproc}")
        if self.runtime.data_parallel == "fsdp2" and self.runtime.probe_interval is not None:
            raise ValueError("runtime.probe_interval: shards cannot be probed; use data_parallel: ddp")
        if self.runtime.data_parallel == "fsdp2" and self.train.precision == "fp16":
            raise ValueError("train.precision: fp16 does not go with data_parallel=fsdp2; use bf16")
