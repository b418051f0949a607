"""The experts of a mixture: feed-forward layers of one kind, their matrices stacked, and three ways to apply them.

Shapes: N tokens, M rows (tokens, once per chosen expert), D n_embd, F hidden width, E experts, I fan-in, O fan-out.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config import UserError
from nanogpt.config.model import Model
from nanogpt.model.dense import ACTIVATIONS
from nanogpt.model.layers import TRAINING, Layer
from parametrization import Role

Path = Literal["auto", "grouped", "loop"]
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (rows, weight_EOI, bias_EO) -> rows
ALIGNMENT = 16  # bytes: what grouped_mm asks of strides, on CPUs too
GROUPED_TYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
GROUPED_CAPABILITY = (8, 0)


class Experts(Layer):
    """Each expert is a dense layer of `model.ffn`'s kind and width; matrix e of a stack is (fan_out, fan_in)."""

    def __init__(self, model: Model, count: int) -> None:
        super().__init__()
        self.path: Path = "auto"
        self.count = count
        kind, d, f = model.ffn.dense_kind, model.n_embd, model.ffn_hidden
        gated = kind == "swiglu"
        self.activation = F.silu if gated else ACTIVATIONS[kind]

        def stack(*shape: int, wanted: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(count, *shape)) if wanted else None

        self.gate, self.gate_bias = stack(f, d, wanted=gated), stack(f, wanted=gated and model.bias)
        self.up, self.up_bias = nn.Parameter(torch.empty(count, f, d)), stack(f, wanted=model.bias)
        self.down, self.down_bias = nn.Parameter(torch.empty(count, d, f)), stack(d, wanted=model.bias)
        self.parameter_roles = {"gate": Role.HIDDEN, "up": Role.HIDDEN, "down": Role.FFN_OUT}
        self.parameter_roles |= dict.fromkeys(("gate_bias", "up_bias", "down_bias"), Role.HIDDEN_BIAS)

    def _layer(self, rows: Tensor, multiply: Multiply) -> Tensor:
        """The formula of the dense layer, whatever `multiply` makes of a stack of matrices."""
        hidden = multiply(rows, self.up, self.up_bias)
        if self.gate is None:
            return multiply(self.activation(hidden), self.down, self.down_bias)
        return multiply(self.activation(multiply(rows, self.gate, self.gate_bias)) * hidden, self.down, self.down_bias)

    def every(self, x_ND: Tensor) -> Tensor:
        """Each expert's output for every token, (E, N, D)."""
        return self._layer(x_ND.expand(self.count, *x_ND.shape), _batched)

    def sorted(self, rows_MD: Tensor, expert_M: Tensor, load_E: Tensor) -> Tensor:
        """Row m through expert `expert_M[m]`; the rows are sorted by expert, `load_E` of them for each (int64)."""
        if rows_MD.is_meta:
            # Without numbers nobody knows the loads; one matrix for all rows has the same FLOPs and the same shapes.
            return self._layer(rows_MD, lambda rows, weight, bias: F.linear(rows, weight[0], _first(bias)))
        if self._takes_grouped(rows_MD):
            return self._layer(rows_MD, _grouped(expert_M, load_E.cumsum(0, dtype=torch.int32)))
        return self._one_by_one(rows_MD, load_E)

    @torch.compiler.disable  # the loads are other numbers at every step, and each would be compiled anew
    def _one_by_one(self, rows_MD: Tensor, load_E: Tensor) -> Tensor:
        return self._layer(rows_MD, _looped(load_E.tolist()))

    def _takes_grouped(self, rows: Tensor) -> bool:
        if self.path == "loop" or (self.path == "auto" and self.count == 1):
            return False
        compiled = torch.compiler.is_compiling()
        missing = why_not_grouped(rows.device, _matmul_type(rows), self.up.shape[1:], compiled)
        if self.path == "grouped" and missing is not None:
            raise UserError(f"runtime.expert_matmul: grouped: {missing}; use auto or loop")
        return missing is None

    def matrices(self) -> int:
        """Numbers in the matrices of one expert."""
        return sum(stack.numel() for stack in (self.gate, self.up, self.down) if stack is not None) // self.count

    def flops_per_row(self) -> int:
        """Training FLOPs of one token in one expert."""
        return TRAINING * 2 * self.matrices()


def why_not_grouped(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], compiled: bool, elsewhere: bool = False
) -> str | None:
    """What torch's grouped matmul lacks here; None where it can be used. `elsewhere` are another torch and GPU."""
    if not elsewhere and not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm"
    if dtype not in GROUPED_TYPES.get(device.type, ()):
        return f"there is none in {str(dtype).removeprefix('torch.')} on {device.type}"
    if any(size * dtype.itemsize % ALIGNMENT for size in shape):
        return f"widths {' and '.join(map(str, shape))} are no multiples of {ALIGNMENT // dtype.itemsize}"
    if not elsewhere and device.type == "cuda" and torch.cuda.get_device_capability(device) < GROUPED_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has none"
    if compiled and dtype != torch.bfloat16:
        return "compiled code has it in bf16 only"
    return None


def _matmul_type(x: Tensor) -> torch.dtype:
    """What autocast would make of a matmul's operands; it does not know grouped_mm."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _batched(x_ENI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
    if bias_EO is None:
        return torch.bmm(x_ENI, weight_EOI.mT)
    return torch.baddbmm(bias_EO[:, None], x_ENI, weight_EOI.mT)


def _looped(loads: list[int]) -> Multiply:
    """One matmul per expert: the reference."""

    def multiply(rows: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
        # unbind, not indexing: the gradient is then one stack, and not a padded stack for each expert.
        biases = bias_EO.unbind() if bias_EO is not None else [None] * len(loads)
        parts = zip(rows.split(loads), weight_EOI.unbind(), biases, strict=True)
        return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts])

    return multiply


def _grouped(expert_M: Tensor, ends_E: Tensor) -> Multiply:
    """One kernel for all experts; `ends_E` (int32) says where each one's rows end."""

    def multiply(rows: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
        dtype = _matmul_type(rows)
        out = F.grouped_mm(rows.to(dtype), weight_EOI.to(dtype).mT, offs=ends_E)
        return _Contiguous.apply(out) if bias_EO is None else out + bias_EO.to(dtype)[expert_M]

    return multiply


class _Contiguous(torch.autograd.Function):
    """The identity, with a gradient in plain order: grouped_mm refuses an expanded one."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def _first(bias_EO: Tensor | None) -> Tensor | None:
    return None if bias_EO is None else bias_EO[0]
