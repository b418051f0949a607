"""The gradient noise scale, measured while training: how much of a step's gradient is the accident of its batch.

A batch of B sequences has a mean gradient with E|G_B|^2 = |G|^2 + tr(Sigma) / B, so the squared norms at two batch
sizes, b < B, give both unknowns without bias (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1):

    |G|^2     = (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

|G_b|^2 is the mean over the B/b parts of one batch. The noise scale is tr(Sigma) / |G|^2. One step's ratio is biased
and noisy, so both are recorded and averaged over steps before they are divided.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

MOST_PARTS = 4  # of a batch that is cut for the measurement alone; more parts measure better and cost more


class Accumulate(Protocol):
    """Leaves the gradients of a batch's mean loss, a part of `micro_batch_size` at a time; returns that loss."""

    def __call__(self, micro_batch_size: int, after_part: Callable[[], None] | None = None) -> Tensor: ...


@dataclass(frozen=True)
class GradientNoise:
    """One step's estimates. Either may be negative, as unbiased estimates of small positive numbers are.

    `square`: |G|^2 of the loss itself. `variance`: tr(Sigma) of the gradient of one token, as if the tokens of a
    sequence were independent draws, so that variance / square is a batch in tokens.
    """

    square: float
    variance: float

    def as_line(self) -> dict[str, float]:
        """The keys of a line of the history."""
        return {"gradient_square": self.square, "gradient_variance": self.variance}


def estimate_noise(small_square: float, big_square: float, small: int, big: int) -> GradientNoise:
    """The two unknowns from the squared norms at two batch sizes; `small` and `big` in tokens (formulas above)."""
    square = (big * big_square - small * small_square) / (big - small)
    return GradientNoise(square, (small_square - big_square) / (1 / small - 1 / big))


def measuring_part(batch_size: int, micro_batch_size: int) -> int:
    """Sequences per part of a measured step: the run's own micro-batch where it cuts its batches, else those of the
    largest number of parts up to 4 that divides the batch (the smallest above it for the others)."""
    if micro_batch_size < batch_size:
        return micro_batch_size
    order = itertools.chain(range(MOST_PARTS, 1, -1), range(MOST_PARTS + 1, batch_size + 1))
    return batch_size // next(parts for parts in order if batch_size % parts == 0)


@dataclass
class _Parts:
    """Takes each part's gradient away as soon as it is there, so that the next one starts from nothing.

    Adding them up afterwards, in order, gives what accumulation in place gives, to the last bit.
    """

    parameters: Sequence[nn.Parameter]
    norms: list[Tensor] = field(default_factory=list)
    sums: dict[int, Tensor] = field(default_factory=dict)

    def take(self) -> None:
        gradients = {i: p.grad for i, p in enumerate(self.parameters) if p.grad is not None}
        self.norms.append(get_total_norm(list(gradients.values())))
        for index, gradient in gradients.items():
            self.sums[index] = self.sums[index].add_(gradient) if index in self.sums else gradient
            self.parameters[index].grad = None

    def give_back(self) -> None:
        for index, gradient in self.sums.items():
            self.parameters[index].grad = gradient


class NoiseMeter:
    """Measures a step in place of an ordinary accumulation. The gradients it leaves are those of an ordinary step.

    Where the run cuts its batches, the parts come for nothing. Where it does not, the batch goes through the model a
    second time, cut, with the random numbers put back afterwards: a measured run trains like one that is not.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], batch_size: int, micro_batch_size: int, block_size: int
    ) -> None:
        self._parameters = parameters
        self._micro_batch_size, self._batch_size, self._block_size = micro_batch_size, batch_size, block_size

    def measure(self, accumulate: Accumulate, loss_scale: float = 1.0) -> tuple[Tensor, GradientNoise]:
        """The batch's loss with its gradients in place, and the noise. `loss_scale`: by which fp16 multiplies them."""
        parts = _Parts(self._parameters)
        size = measuring_part(self._batch_size, self._micro_batch_size)
        if size == self._micro_batch_size:
            loss = accumulate(size, parts.take)
            parts.give_back()
        else:
            with torch.random.fork_rng(devices=_cuda_devices(self._parameters)):
                accumulate(size, parts.take)
            loss = accumulate(self._micro_batch_size)
        whole = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        # One wait for the device. Each part's gradient was divided by the number of parts, so they add up to a mean.
        *small, big = (norm / loss_scale for norm in torch.stack([*parts.norms, whole]).tolist())
        small_square = len(small) * sum(norm**2 for norm in small)
        return loss, estimate_noise(small_square, big**2, size * self._block_size, self._batch_size * self._block_size)


def _cuda_devices(parameters: Sequence[nn.Parameter]) -> list[torch.device]:
    return list({parameter.device for parameter in parameters if parameter.device.type == "cuda"})
