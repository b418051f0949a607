"""The `model` section: the shape of the network. Trunk (how blocks are applied) and ffn are two independent axes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nanogpt.config.ffns import FFN, Gelu, Mixture
from nanogpt.config.noncausal import refuse_non_causal
from nanogpt.config.section import PositiveFloat, PositiveInt, Section
from nanogpt.config.trunks import COUNT_THEIR_OWN, Shared, Stack, Trunk


def kind_of(section: Any) -> str | None:
    """The kind that a tagged section names, in any of the forms in which it may be written."""
    if isinstance(section, dict):
        return section.get("kind")
    return section if isinstance(section, str) else getattr(section, "kind", None)


class Model(Section):
    """Shape of the GPT. Defaults are GPT-2 124M's."""

    # The upper bounds are far beyond any use; they answer a slip of the keyboard before it asks for all memory.
    n_layer: PositiveInt | None = Field(
        12, le=10_000, description="Applications of blocks; null under the trunks that count their own."
    )
    n_head: PositiveInt = 12
    n_kv_head: PositiveInt | None = Field(None, description="Key/value heads (GQA, arXiv 2305.13245); default n_head.")
    n_embd: PositiveInt = Field(768, le=2**20)
    block_size: PositiveInt = Field(1024, le=2**24, description="Context length in tokens.")
    vocab_size: Annotated[PositiveInt, Field(le=2**24)] | Literal["auto"] = Field(
        "auto", description="`auto` takes the corpus's vocabulary."
    )
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    position: Literal["learned", "rope", "none"] = "learned"
    rope_theta: PositiveFloat = 10000.0
    bias: bool = Field(True, description="Biases in linear layers and in LayerNorm.")
    tie_embeddings: bool = True
    qk_norm: bool = False
    logit_softcap: PositiveFloat | None = Field(None, description="c * tanh(logits / c); null is off.")
    dropout: float = Field(0.0, ge=0, lt=1)
    ffn: FFN = Gelu()
    trunk: Trunk = Stack()

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def ffn_hidden(self) -> int:
        """Width of the feed-forward layer, or of one expert, after its default is applied."""
        return self.ffn.hidden if self.ffn.hidden is not None else self.default_ffn_hidden(self.n_embd)

    def default_ffn_hidden(self, n_embd: int) -> int:
        """Width of the feed-forward layer, or of one expert, at some width of the model, when none is named."""
        return self.ffn.default_hidden(n_embd)

    @property
    def layers(self) -> int:
        """`n_layer` of the trunks that take it."""
        assert self.n_layer is not None, f"the trunk {self.trunk.kind} counts its own"
        return self.n_layer

    @model_validator(mode="before")
    @classmethod
    def _refuse_to_look_ahead(cls, data: Any) -> Any:
        """`moe: expert_choice` deserves its reason, not only that there is no such key."""
        if isinstance(data, dict):
            refuse_non_causal({key: value for key, value in data.items() if key not in cls.model_fields})
        return data

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_second_depth(cls, data: Any) -> Any:
        """`n_layer` would be ignored under a trunk that counts its own; resolved configs say null there."""
        if not isinstance(data, dict) or (kind := kind_of(data.get("trunk"))) not in COUNT_THEIR_OWN:
            return data
        if (given := data.get("n_layer")) is not None:
            raise ValueError(
                f"n_layer={given}: trunk={kind} takes its depth from {COUNT_THEIR_OWN[kind]} of model.trunk; "
                "take n_layer out"
            )
        return {**data, "n_layer": None}

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        if self.n_layer is None and self.trunk.kind not in COUNT_THEIR_OWN:
            raise ValueError(f"n_layer: trunk={self.trunk.kind} needs a whole number, got None")
        if isinstance(self.trunk, Shared) and self.trunk.groups > self.layers:
            raise ValueError(f"trunk.groups={self.trunk.groups} is more than n_layer={self.n_layer}")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"position=rope needs an even head size; n_embd/n_head is {self.head_size}")
        return self

    @model_validator(mode="after")
    def _has_experts(self) -> Self:
        every = self.ffn.moe_every if isinstance(self.ffn, Mixture) else 1
        unique = self.trunk.unique_ffns(self.n_layer)
        if every > unique:
            only = "there is only one" if unique == 1 else f"there are {unique}"
            raise ValueError(
                f"ffn.moe_every={every} counts the blocks that own a feed-forward layer, and {only}: "
                "no layer would have experts"
            )
        return self
