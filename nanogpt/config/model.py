"""The `model` section: the shape of the network. Trunk (how blocks are applied) and ffn are two independent axes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nanogpt.config.ffns import FFN, Gelu, Mixture
from nanogpt.config.section import PositiveFloat, PositiveInt, Section, Shorthand


class Stack(Section):
    """The ordinary trunk: n_layer blocks of their own, applied once each."""

    kind: Literal["stack"] = "stack"

    def unique_ffns(self, n_layer: int) -> int:
        """How many feed-forward layers own parameters: what `ffn.moe_every` counts."""
        return n_layer


class Model(Section):
    """Shape of the GPT. Defaults are GPT-2 124M's."""

    # The upper bounds are far beyond any use; they answer a slip of the keyboard before it asks for all memory.
    n_layer: PositiveInt = Field(12, le=10_000)
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
    trunk: Annotated[Stack, Shorthand("kind", "stack")] = Stack()

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
