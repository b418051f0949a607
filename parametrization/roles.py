"""What kind of parameter a tensor is. A scaling rule speaks of roles, never of names or shapes."""

from enum import StrEnum


class Role(StrEnum):
    """The part a tensor plays in a pre-norm transformer. A tied embedding and head are one EMBEDDING."""

    EMBEDDING = "embedding"
    POSITION = "position"
    HIDDEN = "hidden"  # backbone matrices with fan-in n_embd that read the residual stream: q, k, v, ffn-in, gate
    ATTENTION_OUT = "attention_out"  # writes to the residual stream, fan-in n_embd
    FFN_OUT = "ffn_out"  # writes to the residual stream, fan-in ffn_hidden
    READOUT = "readout"  # an untied head
    ROUTER = "router"  # scores the experts, n_embd x experts: an output as far as width goes, its size does not grow
    HIDDEN_BIAS = "hidden_bias"
    NORM_GAIN = "norm_gain"  # in the backbone, QK-norm's gains among them
    NORM_BIAS = "norm_bias"
    FINAL_NORM_GAIN = "final_norm_gain"
    FINAL_NORM_BIAS = "final_norm_bias"

    @property
    def is_matrix(self) -> bool:
        """Matrices are drawn at random and decayed; vectors start at a constant and are not."""
        return self in _MATRICES

    @property
    def constant(self) -> float:
        """The value a vector starts at: 1 for gains, 0 for biases."""
        return 1.0 if self in (Role.NORM_GAIN, Role.FINAL_NORM_GAIN) else 0.0

    @property
    def group(self) -> str:
        """What parameters are counted under: embedding, position, hidden, readout, router, norm or bias."""
        return _GROUPS[self]


_MATRICES = frozenset(
    {Role.EMBEDDING, Role.POSITION, Role.HIDDEN, Role.ATTENTION_OUT, Role.FFN_OUT, Role.READOUT, Role.ROUTER}
)

_GROUPS = {
    Role.EMBEDDING: "embedding",
    Role.POSITION: "position",
    Role.HIDDEN: "hidden",
    Role.ATTENTION_OUT: "hidden",
    Role.FFN_OUT: "hidden",
    Role.READOUT: "readout",
    Role.ROUTER: "router",
    Role.HIDDEN_BIAS: "bias",
    Role.NORM_GAIN: "norm",
    Role.NORM_BIAS: "norm",
    Role.FINAL_NORM_GAIN: "norm",
    Role.FINAL_NORM_BIAS: "norm",
}
