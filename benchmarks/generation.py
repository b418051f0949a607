"""Tokens per second of generation with the cache, beside the same without it, and beside nanoGPT's `generate`.

    python -m benchmarks.generation [--nanogpt CHECKOUT] [--threads 1] [--rounds 7] [--device cpu]

Every side fills the context of a randomly initialised model of one shape from a prompt of one token, in float32, and
takes top_k 40 at temperature 0.8. The sides take turns; a ratio is taken within a round, and medians with quartiles are
printed. nanoGPT's model.py is imported from the checkout, never copied. A ratio above 1 means that the cache is faster.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanogpt.config import Config
from nanogpt.generation import generate, row_generators
from nanogpt.hardware import keep_freed_memory
from nanogpt.model import GPT, build_model
from nanogpt.sampling import Sampling

# n_layer, n_head, n_embd, block_size, vocab_size
SHAPES = [
    (4, 4, 128, 64, 65),  # nanoGPT's README settings for a laptop
    (6, 6, 384, 256, 65),  # its character-level GPU settings
    (6, 6, 384, 1024, 65),
    (12, 12, 768, 256, 50304),  # GPT-2's widths with a short context
]
Side = Callable[[], None]


def our_model(shape: tuple[int, ...], device: str) -> GPT:
    n_layer, n_head, n_embd, block_size, vocab_size = shape
    model = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size, "vocab_size": vocab_size}
    config = Config.model_validate({"model": model, "train": {"max_iters": 1}})
    return build_model(config, device).eval()


def ours(model: GPT, rows: int, tokens: int, cached: bool) -> Side:
    how = Sampling(max_new_tokens=tokens, temperature=0.8, top_k=40)
    start = torch.zeros(rows, 1, dtype=torch.long, device=next(model.parameters()).device)

    def side() -> None:
        for _ in generate(model, start, how, row_generators(0, range(rows)), cached=cached):
            pass

    return side


def nanogpts(checkout: Path, shape: tuple[int, ...], rows: int, tokens: int, device: str) -> Side:
    sys.path.insert(0, str(checkout))
    import model as theirs  # nanoGPT's model.py

    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    config: Any = theirs.GPTConfig(dropout=0.0, bias=True, **dict(zip(names, shape, strict=True)))
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its size
        network = theirs.GPT(config).to(device).eval()
    start = torch.zeros(rows, 1, dtype=torch.long, device=device)
    return lambda: network.generate(start, tokens, temperature=0.8, top_k=40)


def seconds(side: Side, device: str) -> float:
    """CPU time on one thread, which other processes do not touch; else the time that passes."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    side()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def measure(sides: dict[str, Side], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each side by round. The order turns round every time, so that other load falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        seconds(side, device)
    for index in range(rounds):
        names = list(sides) if index % 2 == 0 else list(reversed(sides))
        for name in names:
            taken[name].append(seconds(sides[name], device))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT", help="a nanoGPT checkout to measure beside")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1, help="samples at once")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first N shapes")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    setting = f"{given.threads} thread(s), {given.rows} row(s), {given.rounds} rounds"
    print(f"torch {torch.__version__}, {given.device}, {setting}")
    print("layers width context vocab  side       tokens/s  times ours cached (quartiles)")
    for shape in SHAPES[: given.shapes]:
        tokens, model = shape[3] - 1, our_model(shape, given.device)
        sides = {"cached": ours(model, given.rows, tokens, True), "uncached": ours(model, given.rows, tokens, False)}
        if given.nanogpt is not None:
            sides["nanoGPT"] = nanogpts(given.nanogpt, shape, given.rows, tokens, given.device)
        taken = measure(sides, given.rounds, given.device)
        for name, each in taken.items():
            low, middle, high = statistics.quantiles(
                [t / own for t, own in zip(each, taken["cached"], strict=True)], n=4
            )
            speed = given.rows * tokens / statistics.median(each)
            spread = "" if name == "cached" else f"{middle:6.2f} ({low:.2f}-{high:.2f})"
            print(
                f"{shape[0]:6d} {shape[2]:5d} {shape[3]:7d} {shape[4]:5d}  {name:9s} {speed:9.1f}  {spread}", flush=True
            )


if __name__ == "__main__":
    main()
