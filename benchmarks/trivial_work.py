"""About ten milliseconds of torch, and a small result: the run that the orchestrator's benchmarks repeat.

python -m benchmarks.trivial_work OUT.json SEED     one cold run, as a shell loop would start it
"""

import json
import sys
from pathlib import Path

import torch

SIZE, PRODUCTS = 256, 20


def work(seed: int = 0) -> float:
    """Twenty products of float32 matrices of 256 x 256 on one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, SIZE, SIZE, generator=generator)
    for _ in range(PRODUCTS):
        right = left @ right / SIZE**0.5
    return float(right.square().mean().log())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({"loss": work(int(sys.argv[2]))}))
