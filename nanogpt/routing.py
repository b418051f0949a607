"""What a run's routers do: statistics by application, and their balancing once per optimizer step.

Everything is kept as sums over tokens, so that micro-batches, steps and processes add up.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nanogpt.model.context import Routed
from nanogpt.model.gpt import GPT

SCALARS = ("tokens", "dropped", "logit_square")
DEAD = 0.1  # an expert with less than this share of its even load, over a whole evaluation, is dead
Reduce = Callable[[Tensor], Tensor]  # a tensor added up over all processes


class RoutingSums:
    """Sums of the routers' statistics by application; none of it waits for the device until it is read."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._routers: dict[int, int] = {}

    def add(self, routed: Iterable[Routed], counted: bool = True) -> None:
        """Add what one forward pass left behind. One that only goes through the motions beside other processes is not
        `counted`: it makes the same message, of zeros."""
        for one in routed:
            found = one.statistics
            # float32 counts no further than 2^24; MPS has nothing wider.
            wide = torch.float32 if found["load"].device.type == "mps" else torch.float64
            scalars = torch.stack([found[name].to(wide) for name in SCALARS])
            sums = torch.cat([scalars, found["load"].to(wide), found["probability"].to(wide)])
            if not counted:
                sums = torch.zeros_like(sums)
            earlier = self._sums.get(one.application)
            self._sums[one.application] = sums if earlier is None else earlier + sums
            self._routers[one.application] = one.router

    def reduce(self, reduce: Reduce) -> None:
        """Add up over all processes, in one message. Every process has the same applications."""
        if self._sums:
            order = sorted(self._sums)
            together = reduce(torch.stack([self._sums[application] for application in order]))
            self._sums = dict(zip(order, together.unbind(), strict=True))

    def loads(self) -> dict[int, Tensor]:
        """Choices of each expert by router, over all applications of the router: (E,) each."""
        loads: dict[int, Any] = defaultdict(int)
        for application, sums in self._sums.items():
            loads[self._routers[application]] += _split(sums)[1]
        return dict(loads)

    def read(self, dead: bool = False) -> list[dict[str, Any]] | None:
        """One object per application, in order; None where nothing is routed. `dead` adds the dead experts' count."""
        if not self._sums:
            return None
        return [_readable(application, sums.cpu(), dead) for application, sums in sorted(self._sums.items())]


def _split(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scalars, the loads (E,) and the summed probabilities (E,)."""
    scalars, rest = sums[: len(SCALARS)], sums[len(SCALARS) :]
    load_E, probability_E = rest.chunk(2)
    return scalars, load_E, probability_E


def _readable(application: int, sums: Tensor, dead: bool) -> dict[str, Any]:
    scalars, load_E, probability_E = _split(sums)
    tokens, dropped, logit_square = scalars.tolist()
    share_E, mean_E = load_E / load_E.sum(), probability_E / tokens
    found = {
        "application": application,
        "load": [_finite(share) for share in share_E.tolist()],
        "max_load": _finite(float(share_E.max()) * len(share_E)),
        "entropy": _finite(-float(torch.special.xlogy(mean_E, mean_E).sum())),
        "dropped": _finite(dropped / float(load_E.sum())),
        "logit_rms": _finite(math.sqrt(logit_square / tokens) if logit_square >= 0 else math.nan),
    }
    return found | ({"dead": int((share_E < DEAD / len(share_E)).sum())} if dead else {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Balancer:
    """Collects a training step's routing over its micro-batches and processes, then moves the selection biases once.

    `reduce` adds a tensor up over all processes; a single one has nothing to add.
    """

    def __init__(self, model: GPT, reduce: Reduce = lambda tensor: tensor) -> None:
        self._routers, self._reduce = model.routers, reduce
        self.step = RoutingSums()

    def begin(self) -> None:
        """A step begins, or begins again: what was collected of it is forgotten."""
        self.step = RoutingSums()

    def finish(self) -> None:
        """The optimizer has made its step: every unique router's bias makes one, too."""
        if self._routers:
            self.step.reduce(self._reduce)
            for number, load_E in self.step.loads().items():
                self._routers[number].adjust_bias(load_E)


def summary(training: list[dict[str, Any]] | None, evaluation: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """A run's `routing` in metrics.json: the worst of all applications, and each of them; None without routers."""
    if not training or not evaluation:
        return None
    return {
        "max_load": max((one["max_load"] for one in evaluation if one["max_load"] is not None), default=None),
        "entropy": min((one["entropy"] for one in evaluation if one["entropy"] is not None), default=None),
        "dropped": max((one["dropped"] for one in training if one["dropped"] is not None), default=None),
        "dead": sum(one["dead"] for one in evaluation),
        "training": training,
        "evaluation": evaluation,
    }
