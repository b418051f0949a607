"""The leaves of the network: linear layer, norm, embedding table and rotary positions. Each names its tensors' roles.

Shapes: B batch, T tokens, D n_embd, H heads, K head size; `...` is any leading shape.
A parameter is created uninitialised; `GPT.initialize` fills it according to its role.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parametrization import Role

# A training step costs three times the forward pass: the backward pass multiplies once for the input's gradient and
# once for the weight's (arXiv 2001.08361, section 2.1).
TRAINING = 3
NORM_EPS = 1e-5  # GPT-2's


class Layer(nn.Module):
    """A module that owns parameters: says which role each of them plays."""

    parameter_roles: dict[str, Role]


class Linear(Layer):
    """y = x W^T + b."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        self.bias = nn.Parameter(torch.empty(fan_out)) if bias else None
        self.parameter_roles = {"weight": role, "bias": Role.HIDDEN_BIAS}

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def flops_per_token(self) -> int:
        """Training FLOPs of the matmul for one token."""
        return TRAINING * 2 * self.weight.numel()


class Norm(Layer):
    """LayerNorm (arXiv 1607.06450), or RMSNorm, x / sqrt(mean(x^2) + eps) * gain (arXiv 1910.07467)."""

    def __init__(self, size: int, kind: Literal["layernorm", "rmsnorm"], bias: bool, final: bool = False) -> None:
        super().__init__()
        self.size = (size,)
        self.kind = kind
        self.gain = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and kind == "layernorm" else None
        if final:
            self.parameter_roles = {"gain": Role.FINAL_NORM_GAIN, "bias": Role.FINAL_NORM_BIAS}
        else:
            self.parameter_roles = {"gain": Role.NORM_GAIN, "bias": Role.NORM_BIAS}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            # Under autocast queries and keys arrive in half precision; the gain is float32, and so is the norm.
            return F.rms_norm(x.to(self.gain.dtype), self.size, self.gain, NORM_EPS)
        return F.layer_norm(x, self.size, self.gain, self.bias, NORM_EPS)


class Embedding(Layer):
    """A table of vectors, looked up by token id or by position."""

    def __init__(self, count: int, size: int, role: Role) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, size))
        self.parameter_roles = {"weight": role}

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)


class Rotation(NamedTuple):
    """Cosines and sines of RoPE's angles, shaped to broadcast over batch and heads."""

    cos_T1K: Tensor
    sin_T1K: Tensor


def rotation_table(length: int, head_size: int, theta: float) -> Rotation:
    """RoPE (arXiv 2104.09864): dimension pair i of position t turns by t * theta^(-2i/K)."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle_T1K = torch.cat((angle, angle), dim=-1)[:, None, :]
    return Rotation(angle_T1K.cos(), angle_T1K.sin())


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys; the pairs are (i, i + K/2), the "rotate half" layout of GPT-NeoX and Llama."""
    left, right = x_BTHK.chunk(2, dim=-1)
    turned_BTHK = torch.cat((-right, left), dim=-1)
    return x_BTHK * rotation.cos_T1K + turned_BTHK * rotation.sin_T1K
