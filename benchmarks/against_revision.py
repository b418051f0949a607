"""Training speed beside another checkout of this project: does a step cost more than before?

    git worktree add /tmp/before REVISION
    python benchmarks/against_revision.py /tmp/before [--pairs 7] [--seconds 2] [--threads 1]

Both sides train the same configs by their own `nanogpt.throughput`, each measurement in a process of its own, in
alternated pairs whose order changes. Reported are the ratios of tokens per second, ours over theirs, per pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = {"corpus": {"kind": "zipf_mixture"}}
TRAIN = {"max_iters": 10**6, "precision": "fp32", "eval_tokens": 4096, "eval_interval": None}
CONFIGS = {
    "2 layers, width 32": {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32},
    "4 layers, width 128": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64},
    "6 layers, width 384": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 128},
}


def speed(checkout: Path, model: dict[str, int], seconds: float, threads: int) -> float:
    """Tokens per second of a checkout, in a process of its own."""
    batch = max(1, 4096 // model["block_size"] // 8)
    config = {"model": model, "data": CORPUS, "train": {**TRAIN, "batch_size": batch}, "runtime": {"device": "cpu"}}
    request = json.dumps({"config": config, "seconds": seconds, "threads": threads})
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt", "throughput"], cwd=checkout, env=environment, input=request + "\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        sys.exit(f"{checkout}: {answer['error']}")
    return float(answer["tokens_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    other = arguments.checkout.resolve()
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.threads} threads, {arguments.pairs} pairs")
    for name, model in CONFIGS.items():
        ratios, ours = [], []
        for pair in range(arguments.pairs):
            sides = [ROOT, other] if pair % 2 else [other, ROOT]
            found = {side: speed(side, model, arguments.seconds, arguments.threads) for side in sides}
            ours.append(found[ROOT])
            ratios.append(found[ROOT] / found[other])
        print(
            f"{name}: {statistics.median(ours):,.0f} tokens/s, {statistics.median(ratios):.3f} times the other's "
            f"({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
