"""The arms of `model.trunk`: how a model's blocks are applied, and what is drawn anew for every optimizer step."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nanogpt.config.noncausal import refuse_non_causal
from nanogpt.config.section import NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Shorthand

MOST = 10_000  # far beyond any use: it answers a slip of the keyboard before it asks for all memory
MOST_2D = 32
# Trunks that take their counts in an arm of their own; with them `n_layer` is refused.
COUNT_THEIR_OWN = {
    "recurrent": "prelude, core, coda and depth",
    "random2d": "vertical, horizontal and verifier",
}

Count = Annotated[PositiveInt, Field(le=MOST)]


class Stack(Section):
    """The ordinary trunk: n_layer blocks of their own, applied once each."""

    kind: Literal["stack"] = "stack"

    def unique_ffns(self, n_layer: int | None) -> int:
        """How many feed-forward layers own parameters."""
        return n_layer or 0


class Shared(Section):
    """ALBERT (arXiv 1909.11942): n_layer applications of blocks that share their weights, or a part of them."""

    kind: Literal["shared"] = "shared"
    scope: Literal["all", "attn", "ffn"] = Field("all", description="What is shared; with `all` the norms, too.")
    groups: Count = Field(1, description="Sets of weights; n_layer of them share nothing.")
    order: Literal["sequence", "cycle"] = Field("sequence", description="Groups in runs, or in turn (looped).")

    def unique_ffns(self, n_layer: int | None) -> int:
        """How many feed-forward layers own parameters."""
        return n_layer or 0 if self.scope == "attn" else self.groups


class FixedLoops(Section):
    """The same number of loops in every step."""

    kind: Literal["fixed"] = "fixed"
    loops: Count = 4

    @property
    def typical(self) -> int:
        """The number of loops that stands for all."""
        return self.loops


class DrawnLoops(Section):
    """What every law has whose loops are drawn for every step."""

    kind: str
    mean_loops: float = Field(4.0, gt=0, le=MOST)
    sigma: NonNegativeFloat = Field(0.5, le=3, description="Standard deviation of the logarithm.")
    max_loops: Count = 100

    @property
    def typical(self) -> int:
        """The number of loops that stands for all."""
        return max(1, min(round(self.mean_loops), self.max_loops))

    @model_validator(mode="after")
    def _reaches_its_mean(self) -> Self:
        if self.mean_loops > self.max_loops:
            raise ValueError(f"mean_loops={self.mean_loops:g} is above max_loops={self.max_loops}")
        return self


class LogNormalLoops(DrawnLoops):
    """A log-normal number of this mean, rounded, at least 1 and at most max_loops."""

    kind: Literal["lognormal"] = "lognormal"


class PoissonLogNormalLoops(DrawnLoops):
    """1 + Poisson(rate), rate log-normal of mean `mean_loops - 1` (arXiv 2502.05171)."""

    kind: Literal["poisson_lognormal"] = "poisson_lognormal"
    mean_loops: float = Field(4.0, gt=1, le=MOST)


Depth = Annotated[
    FixedLoops | LogNormalLoops | PoissonLogNormalLoops, Field(discriminator="kind"), Shorthand("kind", "fixed")
]


class Recurrent(Section):
    """Blocks before (prelude), blocks in a loop (core), blocks after (coda); arXiv 2502.05171, section 3."""

    kind: Literal["recurrent"] = "recurrent"
    prelude: Annotated[NonNegativeInt, Field(le=MOST)] = 1
    core: Count = 1
    coda: Annotated[NonNegativeInt, Field(le=MOST)] = 1
    inject: Literal["none", "add", "concat"] = Field("concat", description="How the prelude's output enters each loop.")
    state_init: Literal["zero", "like_embed", "input"] = Field("zero", description="The state before the first loop.")
    depth: Depth = FixedLoops()
    backprop_loops: Count | None = Field(None, description="The last loops, which alone get gradients; null: all.")
    eval_loops: Count | None = Field(None, description="Loops in evaluation; default: the mean of `depth`, rounded.")

    def unique_ffns(self, n_layer: int | None) -> int:
        """How many feed-forward layers own parameters."""
        return self.prelude + self.core + self.coda

    @model_validator(mode="after")
    def _sees_its_input(self) -> Self:
        if self.inject == "none" and self.state_init != "input":
            raise ValueError(
                f"inject=none with state_init={self.state_init}: the loop never sees the text; take state_init=input"
            )
        if self.inject == "none" and self.backprop_loops is not None:
            raise ValueError(
                "inject=none with backprop_loops: nothing before the loop gets a gradient; take inject=add or concat"
            )
        return self


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"expected [least, most], got {value!r}")
    return tuple(value)


Few = Annotated[PositiveInt, Field(le=MOST_2D)]  # along one of the two axes: they multiply
# Drawn uniformly, both ends included.
Range = Annotated[tuple[Few, Few], BeforeValidator(_pair), Field(description="Least and most, drawn uniformly.")]


class Random2D(Section):
    """Three blocks applied a random number of times along two axes; the counts are drawn anew for every step.

    `vertical` levels are made by the block V, each goes `horizontal` times through H, and `verifier` times through R
    when the levels have been combined: all at once (flat), or pair by pair (hierarchical).
    """

    kind: Literal["random2d"] = "random2d"
    order: Literal["flat", "hierarchical"] = "flat"
    levels: Literal["parallel", "chained"] = Field("chained", description="V of the input, or V of the level before.")
    combine: Literal["sum", "mean"] = "mean"
    vertical: Range = (1, 4)
    horizontal: Range = (1, 4)
    verifier: Range = (1, 4)
    eval_vertical: Few | None = Field(None, description="Levels in evaluation; default: the mean, rounded up.")
    eval_horizontal: Few | None = Field(None, description="Default: the mean, rounded down.")
    eval_verifier: Few | None = Field(None, description="Default: the mean, rounded down.")

    def unique_ffns(self, n_layer: int | None) -> int:
        """How many feed-forward layers own parameters."""
        return 3

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("vertical", "horizontal", "verifier"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected [least, most], got [{low}, {high}]")
        return self


Trunk = Annotated[
    Stack | Shared | Recurrent | Random2D,
    Field(discriminator="kind"),
    BeforeValidator(refuse_non_causal),
    Shorthand("kind", "stack"),
]
