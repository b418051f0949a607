"""Muon: momentum, orthogonalised by Newton-Schulz, for the backbone's matrices; and its union with AdamW for the rest.

Method: K. Jordan, kellerjordan.github.io/posts/muon (2024); definition as torch.optim.Muon's. An update depends on the
full gradients alone: whoever averages them before the step (micro-batches, data-parallel ranks) changes nothing here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanogpt.optim.shards import is_shard, local, shard_like, together
from parametrization import update_scale

# x -> a x + b (x x^T) x + c (x x^T)^2 x, one triple per iteration; the last repeats. `margin` keeps the largest
# singular value off 1, where rounding would leave the interval that the polynomials were made for.
Coefficients = Sequence[tuple[float, float, float]]
QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),)  # Jordan's: steepest at zero, ends anywhere in about [0.7, 1.15]
# arXiv 2505.16932, algorithm 1 for 5 iterations, safety factor 1.02, cushion 0.02: nearer to 1.
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class Family(NamedTuple):
    """Polynomials, and the factor by which the Frobenius norm is overestimated before them."""

    coefficients: Coefficients
    margin: float


FAMILIES = {"quintic": Family(QUINTIC, 1.0), "polar_express": Family(POLAR_EXPRESS, 1.02)}

# On a CPU one batched product beats one product per matrix up to this shorter side (benchmarks/muon.py: the whole step
# 1.7 times at 128, 1.1 times at 256, a few hundredths at 512, more with two threads), as long as a stack stays in the
# cache and its memory is not given back to the system after every step. Elsewhere launching kernels is what costs:
# everything is stacked, within a bounded space.
CPU_STACK_UP_TO, CPU_STACK_NUMBERS = 512, 2**20
STACK_NUMBERS = 2**26
LARGEST_INVERSE = 1e37  # of a norm: an update that underflows float32 shrinks to zero, and zero stays zero
SMALLEST_NORM = 1e-30
SMALLEST_ROW = 1e-12


def orthogonalize(update: Tensor, steps: int = 5, family: str = "quintic", precision: str = "bf16") -> Tensor:
    """The matrices (..., m, n) with their singular values brought near 1, in bfloat16 (float64 stays float64).

    Never writes into its argument; not differentiable. bfloat16 is enough, because the iteration contracts its own
    errors; float32 (`precision` fp32) costs four times as much on CPUs that multiply bfloat16.
    """
    coefficients, margin = FAMILIES[family]
    inverse = (
        (_norm(update, update.device.type != "mps") * margin)
        .reciprocal_()
        .clamp_(max=LARGEST_INVERSE)
        .to(_at_least_float32(update))
    )
    # Rounded once, after the scaling: rounding before it, too, adds a quarter to the error on ill-conditioned updates.
    x = (update * inverse).to(_working_type(update, precision))
    stack, x = x.shape, x.flatten(0, -3) if x.dim() > 3 else x
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    tall, short = x.shape[-2] > x.shape[-1], min(x.shape[-2:])
    # Buffers that are written over and over stay in the cache.
    gram, polynomial = x.new_empty(2, *x.shape[:-2], short, short).unbind(0)
    spare = torch.empty_like(x)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        # The smaller of the two Gram matrices; x p(x^T x) = p(x x^T) x, and so nothing has to be transposed in memory.
        left, right = (x.mT, x) if tall else (x, x.mT)
        torch.matmul(left, right, out=gram)
        add_product(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        left, right = (x, polynomial) if tall else (polynomial, x)
        add_product(x, left, right, beta=a, out=spare)
        x, spare = spare, x
    return x.view(stack)


def _norm(update: Tensor, has_float64: bool) -> Tensor:
    """The Frobenius norm of each matrix, also of entries below 1e-23, whose squares are lost in float32.

    A momentum without gradients gets there in a thousand steps: experts that no token reaches, layers that died.
    """
    if has_float64:
        return torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    largest = update.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(update.dtype).tiny)
    return largest * torch.linalg.vector_norm(update / largest, dim=(-2, -1), keepdim=True)


def _working_type(x: Tensor, precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" and x.dtype != torch.float64 else _at_least_float32(x)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def normalize_rows(update: Tensor, mean_square: Tensor, beta2: float) -> Tensor:
    """NorMuon (arXiv 2510.05491): divide rows by their running root mean square, then restore the matrix's norm.

    `mean_square` (..., m, 1) is the running average, updated in place. It needs no bias correction: a factor common
    to all rows drops out when the norm is restored.
    """
    mean_square.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - beta2)
    scaled = update / mean_square.sqrt().clamp_(min=SMALLEST_ROW)
    norm, scaled_norm = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (update, scaled))
    return scaled * (norm / scaled_norm.clamp_(min=SMALLEST_NORM))


class Matrix(NamedTuple):
    """One matrix to be updated, as views: a parameter, a slice of its rows, or one expert of it."""

    weight: Tensor
    update: Tensor
    mean_square: Tensor | None


class Muon(torch.optim.Optimizer):
    """Muon for matrices, (fan_out, fan_in), and for stacks of them, (experts, fan_out, fan_in), each on its own.

    Group options: `lr`, `weight_decay` (p *= 1 - lr * weight_decay, without the factor of `scale`), `momentum`,
    `nesterov`, `ns_steps`, `coefficients`, `ns_precision`, `scale` (see parametrization/muon.py), `normuon` (beta2, or
    None) and `rows`: the sizes of the blocks of rows that are matrices of their own, as Q, K and V are in a fused
    projection. Raises ValueError for a parameter that is neither a matrix nor a stack.

    Matrices of one shape are orthogonalised together where that is faster; `stacked` overrules the choice.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        coefficients: str = "quintic",
        ns_precision: str = "bf16",
        scale: str = "original",
        normuon: float | None = None,
        stacked: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "coefficients": coefficients,
            "ns_precision": ns_precision,
            "scale": scale,
            "normuon": normuon,
            "rows": None,
        }
        super().__init__(params, defaults)
        self.stacked = stacked
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.dim() not in (2, 3):
                raise ValueError(f"Muon trains matrices and stacks of matrices, not a shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Matrices of one shape, type, device, rate and kind of update, whatever group they come from.
        alike: dict[tuple[Any, ...], list[Matrix]] = defaultdict(list)
        moves: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            settings = (group["ns_steps"], group["coefficients"], group["ns_precision"], group["normuon"])
            for matrix in self._matrices(group, moves):
                weight = matrix.weight
                rate = group["lr"] * update_scale(group["scale"], *weight.shape)
                alike[(weight.shape, weight.dtype, weight.device, rate, *settings)].append(matrix)
        for (*_, rate, steps, family, precision, beta2), matrices in alike.items():
            for part in self._parts(matrices):
                _apply(part, rate, (steps, family, precision), beta2)
        for weight, change in moves:
            weight.add_(shard_like(weight, change))
        return loss

    def _matrices(self, group: dict[str, Any], moves: list[tuple[Tensor, Tensor]]) -> Iterator[Matrix]:
        """Advance the momentum and decay the weights of a group; the matrices that are left to be updated.

        An orthogonalisation needs the whole matrix. The update of one that is cut over ranks is put together, every
        rank makes the same move in a copy of its shape, and `moves` takes it, to be cut and added in the end.
        """
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        weights = [local(parameter) for parameter in parameters]
        gradients = [local(parameter.grad) for parameter in parameters]
        momenta = [local(self._momentum(parameter)) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        if group["weight_decay"] > 0:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for parameter, update in zip(parameters, updates, strict=True):
            tensors = [parameter, update]
            if is_shard(parameter):
                whole = together(update, parameter)
                tensors = [torch.zeros_like(whole), whole]
                moves.append((parameter, tensors[0]))
            if group["normuon"] is not None:
                tensors.append(self._mean_square(parameter))
            for views in zip(*(_pieces(tensor, group["rows"]) for tensor in tensors), strict=True):
                yield Matrix(views[0], views[1], views[2] if len(views) > 2 else None)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]

    def _mean_square(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "row_mean_square" not in state:
            state["row_mean_square"] = local(weight).new_zeros((*weight.shape[:-1], 1))
        return state["row_mean_square"]

    def _parts(self, matrices: list[Matrix]) -> Iterator[list[Matrix]]:
        """Cut a list of like matrices into those that are orthogonalised in one go."""
        weight = matrices[0].weight
        on_cpu = weight.device.type == "cpu"
        stacked = self.stacked
        if stacked is None:
            stacked = not on_cpu or min(weight.shape) <= CPU_STACK_UP_TO
        numbers = CPU_STACK_NUMBERS if on_cpu else STACK_NUMBERS
        size = max(1, numbers // weight.numel()) if stacked else 1
        for start in range(0, len(matrices), size):
            yield matrices[start : start + size]


def _pieces(tensor: Tensor, rows: list[int] | None) -> Sequence[Tensor]:
    """The matrices that a parameter holds, as views: one, its blocks of rows, or its experts."""
    matrices = tensor.unbind(0) if tensor.dim() == 3 else (tensor,)
    if rows is None:
        return matrices
    return [block for matrix in matrices for block in matrix.split(rows)]


def _apply(matrices: list[Matrix], rate: float, how: tuple[int, str, str], beta2: float | None) -> None:
    """Subtract `rate` times their orthogonalised updates from matrices that are alike."""
    weights = [matrix.weight for matrix in matrices]
    alone = len(matrices) == 1
    update = matrices[0].update if alone else torch.stack([matrix.update for matrix in matrices])
    update = orthogonalize(update, *how).to(weights[0].dtype)
    if beta2 is not None:
        averages = [matrix.mean_square for matrix in matrices if matrix.mean_square is not None]
        mean_square = averages[0] if alone else torch.stack(averages)
        update = normalize_rows(update, mean_square, beta2)
        if not alone:
            torch._foreach_copy_(averages, mean_square.unbind(0))
    torch._foreach_add_(weights, [update] if alone else update.unbind(0), alpha=-rate)


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer: one list of groups to schedule, one state to save, one step.

    It does not claim to unscale gradients by itself, as the fused AdamW alone does; so a GradScaler that finds an
    overflow leaves out the whole step and not one half of it.
    """

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([{**group, "half": "muon"} for group in muon.param_groups], {})
        for group in adamw.param_groups:
            self.add_param_group({**group, "half": "adamw"})
        self._halves: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": adamw}
        self._share()

    def _share(self) -> None:
        """Let the halves work on this optimizer's own groups and state."""
        for name, half in self._halves.items():
            half.param_groups = [group for group in self.param_groups if group["half"] == name]
            for group in half.param_groups:
                for option, value in half.defaults.items():
                    group.setdefault(option, value)  # a checkpoint may be older than an option
            half.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()  # loading makes new lists

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both halves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in self._halves.values():
            half.step()
        return loss
