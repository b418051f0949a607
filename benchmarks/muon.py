"""A step of our Muon beside torch.optim.Muon's: alternated, the median ratio of pairs with their spread.

    python -m benchmarks.muon [--threads 1] [--pairs 15] [--device cpu]

Both sides update the matrices of a GPT's backbone: per layer Q, K, V and the output projection (d x d), and the
feed-forward pair (4d x d and d x 4d; some shapes have fewer keys or another feed-forward width), as float32 tensors
with random gradients and equal settings, in a process that keeps freed memory, as the engine does (nanogpt/hardware.py;
page faults would drown both sides). torch's side is also given the fused QKV (3d x d), which is fewer and larger
products but another update: the ratio against it says what keeping Q, K and V apart costs. A ratio above 1 means that
ours is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanogpt.hardware import keep_freed_memory
from nanogpt.optim.muon import Muon


@dataclass(frozen=True)
class Backbone:
    """The shape of a GPT's backbone; `kv` is the width of K and of V, `ffn` of the feed-forward layer."""

    layers: int
    width: int
    kv: int
    ffn: int

    @property
    def rows(self) -> list[int]:
        return [self.width, self.kv, self.kv]


def backbone(layers: int, width: int, kv: int | None = None, ffn: int | None = None) -> Backbone:
    return Backbone(layers, width, kv or width, ffn or 4 * width)


SHAPES = [
    backbone(2, 32),
    backbone(8, 32),
    backbone(6, 48, ffn=131),
    backbone(8, 64),
    backbone(24, 64),
    backbone(12, 96),
    backbone(2, 128),
    backbone(8, 128),
    backbone(8, 128, kv=32),
    backbone(4, 192),
    backbone(6, 192),
    backbone(2, 256),
    backbone(4, 256),
    backbone(4, 256, kv=64, ffn=683),
    backbone(3, 320),
    backbone(2, 384),
    backbone(2, 512),
]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
SECONDS_PER_SIDE = 0.15  # of one pair: long enough for a clock, short enough that both sides meet the same load


@dataclass(frozen=True)
class Comparison:
    """Milliseconds per step, and the quartiles of theirs / ours over the pairs."""

    ours: float
    theirs: float
    low: float
    middle: float
    high: float


def weights(shape: Backbone, fused: bool, device: str) -> list[torch.nn.Parameter]:
    """One backbone's matrices with gradients; the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    width, ffn = shape.width, shape.ffn
    projections = [(sum(shape.rows), width)] if fused else [(rows, width) for rows in shape.rows]
    parameters = []
    for size in [*projections, (width, width), (ffn, width), (width, ffn)] * shape.layers:
        parameter = torch.nn.Parameter((torch.randn(size, generator=generator) * 0.02).to(device))
        parameter.grad = torch.randn(size, generator=generator).to(device)
        parameters.append(parameter)
    return parameters


def our_step(shape: Backbone, device: str) -> Callable[[], object]:
    """As in a model: QKV is one tensor whose three blocks of rows are updated apart."""
    parameters = weights(shape, fused=True, device=device)
    qkv = parameters[::4]
    others = [parameter for index, parameter in enumerate(parameters) if index % 4]
    return Muon([{"params": qkv, "rows": shape.rows}, {"params": others}], **SETTINGS).step


def their_step(shape: Backbone, fused: bool, device: str) -> Callable[[], object]:
    return torch.optim.Muon(weights(shape, fused, device), **SETTINGS).step


def milliseconds(step: Callable[[], object], times: int, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        step()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times * 1e3


def compare(ours: Callable[[], object], theirs: Callable[[], object], pairs: int, device: str) -> Comparison:
    """Time both in turn, so that whatever else the machine does falls on either."""
    for step in (ours, theirs):
        milliseconds(step, 2, device)
    times = {step: max(1, round(SECONDS_PER_SIDE * 1e3 / milliseconds(step, 2, device))) for step in (ours, theirs)}
    found = []
    for index in range(pairs):
        order = (ours, theirs) if index % 2 == 0 else (theirs, ours)
        taken = {step: milliseconds(step, times[step], device) for step in order}
        found.append((taken[ours], taken[theirs]))
    low, middle, high = statistics.quantiles([other / own for own, other in found], n=4)
    return Comparison(*(statistics.median(side) for side in zip(*found, strict=True)), low, middle, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    print(f"torch {torch.__version__}, {given.device}, {given.threads} thread(s), {given.pairs} pairs; theirs / ours")
    print("layers  width   kv   ffn  torch's QKV  ours ms  theirs ms  ratio  quartiles")
    ratios = []
    for shape in SHAPES:
        for fused in (False, True):
            ours, theirs = our_step(shape, given.device), their_step(shape, fused, given.device)
            c = compare(ours, theirs, given.pairs, given.device)
            ratios.append(c.middle)
            print(
                f"{shape.layers:6d}  {shape.width:5d}  {shape.kv:3d}  {shape.ffn:4d}  "
                f"{'fused' if fused else 'apart':11s}  {c.ours:7.2f}  {c.theirs:9.2f}  "
                f"{c.middle:5.2f}  {c.low:.2f}-{c.high:.2f}",
                flush=True,
            )
    print(f"smallest ratio {min(ratios):.2f}")


if __name__ == "__main__":
    main()
