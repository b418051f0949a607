"""The `parametrization` section: which scaling rules hold, and the base shape at which they all agree."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nanogpt.config.section import PositiveFloat, PositiveInt, Section
from parametrization import WeightDecayRule


def _any_case(value: Any) -> Any:
    """The literature writes SP, MuP, CompleteP; all of these are the same mode."""
    return value.lower() if isinstance(value, str) else value


class Parametrization(Section):
    """SP, muP (arXiv 2203.03466), depth-muP (alpha = 1/2) or CompleteP (alpha = 1, arXiv 2505.01618)."""

    mode: Annotated[Literal["sp", "mup", "depth_mup", "completep"], BeforeValidator(_any_case)] = "sp"
    base_n_embd: PositiveInt | None = Field(None, description="Width of the base model; needed by every mode but sp.")
    base_n_layer: PositiveInt | None = Field(None, description="Depth of the base model; needed by depth rules.")
    base_loops: PositiveFloat | None = Field(None, description="Applications per unique block of the base; see docs.")
    base_head_size: PositiveInt | None = Field(None, description="Head size of the base model; default the model's.")
    base_ffn_hidden: PositiveInt | None = Field(None, description="FFN width of the base; see docs.")
    weight_decay_rule: WeightDecayRule = Field("width", description="What weight_decay means for a matrix: see docs.")
    residual_init: Literal["gpt2", "plain"] = Field("gpt2", description="SP only: std / sqrt(2 n_layer), or plain.")
    init_std: PositiveFloat = 0.02
    input_multiplier: PositiveFloat = 1.0
    output_multiplier: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _has_base(self) -> Self:
        # Without a base shape every ratio is 1 and muP would silently be SP: refuse instead.
        if self.mode != "sp" and self.base_n_embd is None:
            raise ValueError(f"mode={self.mode} needs base_n_embd, the width of the model whose settings transfer")
        if self.mode in ("depth_mup", "completep") and self.base_n_layer is None:
            raise ValueError(f"mode={self.mode} needs base_n_layer, the depth of the model whose settings transfer")
        return self
