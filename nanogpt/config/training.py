"""The `optimizer`, `schedule` and `train` sections: how the loss is made small, and for how long."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nanogpt.config.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Shorthand,
)

HORIZONS = ("max_iters", "epochs", "tokens", "tokens_per_param", "flops")


class AdamW(Section):
    """AdamW (arXiv 1711.05101) with coupled decay, p *= 1 - lr * weight_decay, as torch has it."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 6e-4
    weight_decay: NonNegativeFloat = 0.1
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    grad_clip: NonNegativeFloat = Field(1.0, description="Largest global gradient norm; 0 turns clipping off.")


class Muon(Section):
    """Muon (K. Jordan, 2024) on the backbone's matrices, and AdamW with its own learning rate on everything else."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = Field(0.02, description="Muon's peak.")
    weight_decay: NonNegativeFloat = Field(0.1, description="Of Muon's matrices: p *= 1 - learning_rate * weight_decay")
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: PositiveInt = Field(5, le=20, description="Newton-Schulz iterations.")
    coefficients: Literal["quintic", "polar_express"] = "quintic"
    ns_precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of the iterations; fp32 costs more and rounds less."
    )
    scale: Literal["original", "match_rms_adamw", "spectral"] = Field("original", description="Length of the update.")
    normuon: float | None = Field(None, ge=0, lt=1, description="beta2 of NorMuon's row norms (about 0.95); null: off.")
    adamw_learning_rate: PositiveFloat = Field(6e-4, description="Peak of the other half.")
    adamw_weight_decay: NonNegativeFloat = Field(0.1, description="Of the embeddings and an untied head.")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    grad_clip: NonNegativeFloat = Field(1.0, description="Largest global gradient norm; 0 turns clipping off.")

    @property
    def other_half(self) -> AdamW:
        """The settings of what Muon does not train. Clipping is global and stays with the whole."""
        return AdamW(
            learning_rate=self.adamw_learning_rate,
            weight_decay=self.adamw_weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            grad_clip=self.grad_clip,
        )


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind"), Shorthand("kind", "adamw")]


class Constant(Section):
    """Linear warm-up, then the peak learning rate."""

    kind: Literal["constant"] = "constant"
    warmup_iters: NonNegativeInt = 0


class Cosine(Section):
    """nanoGPT's schedule: linear warm-up, then a half cosine down to min_lr at decay_iters."""

    kind: Literal["cosine"] = "cosine"
    warmup_iters: NonNegativeInt = 0
    decay_iters: PositiveInt | None = Field(None, description="Default: the horizon of the run.")
    min_lr: NonNegativeFloat = 0.0


class Linear(Section):
    """Linear warm-up, then a straight line down to min_lr at decay_iters."""

    kind: Literal["linear"] = "linear"
    warmup_iters: NonNegativeInt = 0
    decay_iters: PositiveInt | None = Field(None, description="Default: the horizon of the run.")
    min_lr: NonNegativeFloat = 0.0


class WSD(Section):
    """Warm-up, stable, decay (arXiv 2405.18392): the trunk at the peak can be branched into cool-downs."""

    kind: Literal["wsd"] = "wsd"
    warmup_iters: NonNegativeInt = 0
    decay_iters: PositiveInt | None = Field(None, description="The cool-down's end; default: the horizon of the run.")
    cooldown: Fraction = Field(0.2, description="Share of decay_iters spent cooling down, linearly.")
    min_lr: NonNegativeFloat = 0.0

    def stable_steps(self, horizon: int) -> int:
        """Steps before the cool-down begins; runs that differ only in their cool-downs share the fewest of these."""
        end = self.decay_iters or horizon
        return min(max(end - round(self.cooldown * end), self.warmup_iters), end)


Schedule = Annotated[Constant | Cosine | Linear | WSD, Field(discriminator="kind"), Shorthand("kind", "cosine")]


class Train(Section):
    """Batch, horizon, precision and evaluation. Exactly one of the five horizons is given."""

    batch_size: PositiveInt = Field(12, le=2**24, description="Sequences per optimizer step, over all micro-batches.")
    max_iters: PositiveInt | None = Field(None, description="Horizon in optimizer steps.")
    epochs: PositiveFloat | None = Field(None, description="Horizon in passes over the training split.")
    tokens: PositiveInt | None = Field(None, description="Horizon in training tokens.")
    tokens_per_param: PositiveFloat | None = Field(None, description="Horizon in tokens per non-embedding parameter.")
    flops: PositiveFloat | None = Field(None, description="Horizon in training FLOPs.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    eval_interval: PositiveInt | None = Field(250, description="Steps between evaluations; null: only at the end.")
    eval_tokens: PositiveInt | None = Field(None, description="Validation tokens scored; null: the whole split.")

    @property
    def horizon(self) -> tuple[str, float]:
        """The one horizon given, as (name, value)."""
        return next((name, getattr(self, name)) for name in HORIZONS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        given = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(given) != 1:
            found = "none is given" if not given else f"given: {', '.join(given)}"
            raise ValueError(f"needs exactly one of {', '.join(HORIZONS)}; {found}")
        return self
