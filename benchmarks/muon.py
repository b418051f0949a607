"""A step of our Muon beside torch.optim.Muon's: alternated, the median ratio of pairs with their spread.

    python -m benchmarks.muon [--threads 1] [--pairs 15] [--device cpu]

Both sides update the matrices of a GPT's backbone: per layer Q, K, V and the output projection (d x d), and the
feed-forward pair (4d x d and d x 4d), as float32 tensors with random gradients and equal settings, in a process that
keeps freed memory, as the engine does (nanogpt/hardware.py; page faults would drown both sides). torch's side is
also given the fused QKV (3d x d), which is fewer and larger products but another update: the ratio against it says
what keeping Q, K and V apart costs. A ratio above 1 means that ours is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanogpt.hardware import keep_freed_memory
from nanogpt.optim.muon import Muon

SHAPES = [
    (2, 32),
    (8, 32),
    (8, 64),
    (24, 64),
    (2, 128),
    (8, 128),
    (4, 192),
    (2, 256),
    (4, 256),
    (2, 384),
]  # (layers, width)
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


def weights(layers: int, width: int, fused: bool, device: str) -> list[torch.nn.Parameter]:
    """One backbone's matrices with gradients; the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    projections = [(3 * width, width)] if fused else [(width, width)] * 3
    shapes = [*projections, (width, width), (4 * width, width), (width, 4 * width)] * layers
    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(device))
        parameter.grad = torch.randn(shape, generator=generator).to(device)
        parameters.append(parameter)
    return parameters


def our_step(layers: int, width: int, device: str) -> Callable[[], object]:
    """As in a model: QKV is one tensor whose three blocks of rows are updated apart."""
    parameters = weights(layers, width, fused=True, device=device)
    qkv = [parameter for parameter in parameters if parameter.shape[0] == 3 * width]
    others = [parameter for parameter in parameters if parameter.shape[0] != 3 * width]
    return Muon([{"params": qkv, "rows": [width] * 3}, {"params": others}], **SETTINGS).step


def their_step(layers: int, width: int, fused: bool, device: str) -> Callable[[], object]:
    return torch.optim.Muon(weights(layers, width, fused, device), **SETTINGS).step


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
    print("layers  width  torch's QKV  ours ms  theirs ms  ratio  quartiles")
    for layers, width in SHAPES:
        for fused in (False, True):
            ours, theirs = our_step(layers, width, given.device), their_step(layers, width, fused, given.device)
            c = compare(ours, theirs, given.pairs, given.device)
            print(
                f"{layers:6d}  {width:5d}  {'fused' if fused else 'apart':11s}  {c.ours:7.2f}  {c.theirs:9.2f}  "
                f"{c.middle:5.2f}  {c.low:.2f}-{c.high:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
