"""`Config`: the sections put together, with the checks that span more than one of them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from nanogpt.config.data import Data
from nanogpt.config.model import Model
from nanogpt.config.parametrization import Parametrization
from nanogpt.config.runtime import Runtime
from nanogpt.config.section import NonNegativeInt, Section
from nanogpt.config.training import AdamW, Cosine, Optimizer, Schedule, Train


class Config(Section):
    """One training run. `runtime` says how it is executed; everything else is its identity."""

    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    train: Train
    parametrization: Parametrization = Parametrization()
    init_from: Literal["scratch"] = "scratch"
    seed: NonNegativeInt = Field(1337, lt=2**63)
    runtime: Runtime = Runtime()

    @property
    def micro_batch_size(self) -> int:
        return self.runtime.micro_batch_size or self.train.batch_size

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.train.batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is not divisible by "
                f"runtime.micro_batch_size={self.micro_batch_size}"
            )
        if self.runtime.noise_scale_interval is not None and self.train.batch_size == 1:
            raise ValueError("runtime.noise_scale_interval: a batch of 1 sequence has no parts to compare; it needs 2")
        low = getattr(self.schedule, "min_lr", 0.0)
        if low > self.optimizer.learning_rate:
            raise ValueError(f"schedule.min_lr={low} is above optimizer.learning_rate={self.optimizer.learning_rate}")
        return self
