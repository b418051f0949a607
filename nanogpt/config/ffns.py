"""The arms of `model.ffn`: dense feed-forward layers and mixtures of them."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nanogpt.config.noncausal import refuse_non_causal
from nanogpt.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Shorthand

DenseKind = Literal["gelu", "gelu_exact", "relu2", "swiglu"]
Hidden = Annotated[PositiveInt, Field(le=2**24)]


class DenseFFN(Section):
    """What every dense layer has: a kind and a width. Alone it is also one expert of a mixture."""

    kind: str
    hidden: Hidden | None = Field(None, description="Width of the layer; default 4 * n_embd.")

    @property
    def dense_kind(self) -> str:
        """The kind of the layer itself, or of each expert."""
        return self.kind

    def default_hidden(self, n_embd: int) -> int:
        """The width at some n_embd when none is named."""
        return 4 * n_embd


class Gelu(DenseFFN):
    """GPT-2's feed-forward layer: the tanh approximation of GELU."""

    kind: Literal["gelu"] = "gelu"


class GeluExact(DenseFFN):
    """nanoGPT's feed-forward layer: GELU by the error function."""

    kind: Literal["gelu_exact"] = "gelu_exact"


class Relu2(DenseFFN):
    """Squared ReLU (Primer, arXiv 2109.08668)."""

    kind: Literal["relu2"] = "relu2"


class SwiGLU(DenseFFN):
    """SwiGLU (arXiv 2002.05202): silu(x W_gate) * (x W_up), three matrices."""

    kind: Literal["swiglu"] = "swiglu"
    hidden: Hidden | None = Field(None, description="Width; default 8/3 * n_embd rounded up to `multiple_of`.")
    multiple_of: PositiveInt = 32

    def default_hidden(self, n_embd: int) -> int:
        return _swiglu_hidden(n_embd, self.multiple_of)


def _swiglu_hidden(n_embd: int, multiple_of: int) -> int:
    # 8/3 d in whole numbers: a float 8 / 3 * 768 may land a hair above 2048 and round up a whole step.
    return -(-8 * n_embd // (3 * multiple_of)) * multiple_of


class Mixture(Section):
    """What every mixture has: experts of one dense kind, in every block or in every `moe_every`-th."""

    kind: str
    experts: PositiveInt = Field(8, le=4096, description="Experts per layer.")
    expert: DenseKind = Field("gelu", description="Kind of each expert, and of the dense layers under moe_every.")
    hidden: Hidden | None = Field(None, description="Width of one expert; default as for a dense layer of its kind.")
    multiple_of: PositiveInt = Field(32, description="Of the default width of swiglu experts.")
    moe_every: PositiveInt = Field(
        1, description="Unique block i has experts where i % moe_every == moe_every - 1; the others are dense."
    )

    @property
    def dense_kind(self) -> str:
        """The kind of each expert."""
        return self.expert

    def default_hidden(self, n_embd: int) -> int:
        """The width of an expert at some n_embd when none is named."""
        return _swiglu_hidden(n_embd, self.multiple_of) if self.expert == "swiglu" else 4 * n_embd

    def has_experts(self, block: int) -> bool:
        """Whether unique block number `block` (from 0) is a mixture."""
        return block % self.moe_every == self.moe_every - 1


class SoftMoE(Mixture):
    """Dense mixture (Jacobs et al. 1991): every expert sees every token, weighted by a softmax over the experts."""

    kind: Literal["soft_moe"] = "soft_moe"


BALANCE_OF = {"bias_rate": "bias", "aux_coefficient": "aux", "aux_scope": "aux"}


class TopKMoE(Mixture):
    """Each token goes to its `top_k` likeliest experts (arXiv 1701.06538); no token is dropped by default."""

    kind: Literal["topk_moe"] = "topk_moe"
    top_k: PositiveInt = Field(2, description="Experts per token.")
    gate: Literal["raw", "renorm"] = Field(
        "renorm", description="Softmax over all experts (Switch), or over the chosen ones (Mixtral)."
    )
    shared_experts: NonNegativeInt = Field(0, le=4096, description="Experts beside these that see every token.")
    balance: Literal["bias", "aux", "none"] = Field("bias", description="What evens out the experts' loads.")
    bias_rate: PositiveFloat = Field(1e-3, description="bias: step of the selection bias (arXiv 2408.15664).")
    aux_coefficient: PositiveFloat = Field(0.01, description="aux: weight of Switch's loss (arXiv 2101.03961).")
    aux_scope: Literal["sequence", "micro_batch"] = Field(
        "sequence", description="aux: what loads are averaged over before they enter the loss."
    )
    z_coefficient: NonNegativeFloat = Field(0.0, description="Weight of the router z-loss (arXiv 2202.08906); 0: off.")
    capacity_factor: PositiveFloat | None = Field(
        None, description="Training only: an expert takes ceil(this * top_k * tokens / experts); null: all that come."
    )

    @model_validator(mode="after")
    def _balances_as_set(self) -> Self:
        """A run's own config.yaml writes every setting out, so one at its default counts as not given."""
        for name, balance in BALANCE_OF.items():
            value = getattr(self, name)
            if balance != self.balance and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={value} has no effect with balance={self.balance}: it belongs to balance={balance}"
                )
        return self

    @model_validator(mode="after")
    def _learns_to_route(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} is more than experts={self.experts}")
        if self.top_k == 1 and self.gate == "renorm":
            raise ValueError(
                "top_k=1 with gate=renorm: a softmax over the one chosen expert is always 1, so the router gets no "
                "gradient and never learns; use gate=raw, or top_k of at least 2"
            )
        return self


FFN = Annotated[
    Gelu | GeluExact | Relu2 | SwiGLU | SoftMoE | TopKMoE,
    Field(discriminator="kind"),
    BeforeValidator(refuse_non_causal),
    Shorthand("kind", "gelu"),
]
