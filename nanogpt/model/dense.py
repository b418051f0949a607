"""What a feed-forward layer is, and the dense ones: all parameters act on every token.

Shapes: B batch, T tokens, D n_embd, F hidden width.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config.model import Model
from nanogpt.model.context import Context
from nanogpt.model.layers import Linear
from parametrization import Role


class FeedForward(nn.Module):
    """What a block needs of a feed-forward layer: a forward pass and its price."""

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        raise AssertionError(f"{type(self).__name__} does not define forward")

    def flops_per_token(self) -> int:
        """Training FLOPs per token of the layer's matmuls."""
        return sum(module.flops_per_token() for module in self.modules() if isinstance(module, Linear))

    def idle_parameters(self) -> int:
        """How many of the layer's parameters do not act on a given token."""
        return 0


class Plain(FeedForward):
    """Two matrices and a pointwise activation between them."""

    def __init__(self, model: Model, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(model.n_embd, model.ffn_hidden, Role.HIDDEN, model.bias)
        self.down = Linear(model.ffn_hidden, model.n_embd, Role.FFN_OUT, model.bias)

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        return self.down(self.activation(self.up(x_BTD)))


class SwiGLU(FeedForward):
    """silu(x W_gate) * (x W_up), then W_down (arXiv 2002.05202)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate = Linear(model.n_embd, model.ffn_hidden, Role.HIDDEN, model.bias)
        self.up = Linear(model.n_embd, model.ffn_hidden, Role.HIDDEN, model.bias)
        self.down = Linear(model.ffn_hidden, model.n_embd, Role.FFN_OUT, model.bias)

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's GELU, the tanh approximation (arXiv 1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu_tanh, "gelu_exact": F.gelu, "relu2": squared_relu}


def dense_ffn(model: Model) -> FeedForward:
    """The dense layer of a model: its own kind, or that of its experts."""
    kind = model.ffn.dense_kind
    return SwiGLU(model) if kind == "swiglu" else Plain(model, ACTIVATIONS[kind])
