"""Training speed beside nanoGPT's train.py on its CPU settings: alternated runs on one machine, ratios with spread.

    python benchmarks/against_nanogpt.py PATH_OF_A_NANOGPT_CHECKOUT [--threads 1] [--pairs 5] [--iters 200]

Both sides train configs/shakespeare_char.yaml (nanoGPT's README settings for a CPU) eagerly in float32. A step is
everything between two batches: fetching, forward, backward, clipping, the optimizer, reading the loss. The first
iterations are left out. nanoGPT's files are read and run, never copied; the prepared corpus is given to it in its own
format, in a temporary folder.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "shakespeare_char.yaml"
TOKENS_PER_STEP = 12 * 64
WARM_UP = 20
# nanoGPT's README, "I only have a macbook", with as many iterations as asked for and a single short evaluation.
NANOGPT_SETTINGS = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 1,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
    "eval_interval": 1_000_000,
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step of one run."""

    median: float
    p10: float

    @property
    def tokens_per_second(self) -> float:
        return TOKENS_PER_STEP / self.median * 1e3


def timing(milliseconds: list[float]) -> Timing:
    steady = sorted(milliseconds[WARM_UP:])
    return Timing(statistics.median(steady), steady[len(steady) // 10])


def run_nanogpt(work: Path, iters: int, environment: dict[str, str]) -> Timing:
    settings = [f"--{key}={value}" for key, value in {**NANOGPT_SETTINGS, "max_iters": iters}.items()]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *settings]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
    # Its log is the only place where it says how long a step took.
    return timing([float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", done.stdout)])


def run_ours(work: Path, iters: int, environment: dict[str, str]) -> Timing:
    folder = work / "ours"
    shutil.rmtree(folder, ignore_errors=True)
    settings = [f"--max_iters={iters}", f"--out_dir={folder}", "--log_interval=1", "--eval_tokens=768"]
    settings += ["--eval_interval=1000000", "--checkpoint=never"]
    command = [sys.executable, "-m", "nanogpt", "train", str(CONFIG), *settings]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return timing([TOKENS_PER_STEP / line["tokens_per_second"] * 1e3 for line in lines])


def lay_out(checkout: Path, work: Path) -> None:
    """A temporary copy of the checkout's scripts with the prepared corpus where they look for it."""
    for name in ("train.py", "model.py", "configurator.py", "config"):
        source = checkout / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, work / name)
    prepared = Path(os.environ.get("NANOGPT_DATA_DIR", ROOT / "data")) / "shakespeare_char"
    if not (prepared / "meta.json").exists():
        sys.exit(f"{prepared}: no corpus there; run `python -m nanogpt prepare shakespeare_char`")
    target = work / "data" / "shakespeare_char"
    shutil.copytree(prepared, target)
    characters = json.loads((prepared / "meta.json").read_text())["itos"]
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)),
            "stoi": {character: index for index, character in enumerate(characters)}}  # fmt: skip
    (target / "meta.pkl").write_bytes(pickle.dumps(meta))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a nanoGPT checkout")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--iters", type=int, default=200)
    arguments = parser.parse_args()
    if not (arguments.checkout / "train.py").is_file():
        sys.exit(f"{arguments.checkout}: no train.py there; give the folder of a nanoGPT checkout")
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay_out(arguments.checkout, work)
        print(f"{arguments.threads} thread(s), {arguments.iters} steps of {TOKENS_PER_STEP} tokens, ms per step")
        print(f"{'pair':>4} {'nanoGPT median':>15} {'p10':>7} {'ours median':>12} {'p10':>7} {'ratio':>7}", flush=True)
        ratios, ours_speed, theirs_speed = [], [], []
        for pair in range(1, arguments.pairs + 1):
            theirs = run_nanogpt(work, arguments.iters, environment)
            ours = run_ours(work, arguments.iters, environment)
            ratios.append(theirs.median / ours.median)
            ours_speed.append(ours.tokens_per_second)
            theirs_speed.append(theirs.tokens_per_second)
            print(
                f"{pair:>4} {theirs.median:>15.2f} {theirs.p10:>7.2f} {ours.median:>12.2f} {ours.p10:>7.2f} "
                f"{ratios[-1]:>6.2f}x",
                flush=True,
            )
    print(
        f"tokens per second: ours {statistics.median(ours_speed):,.0f}, "
        f"nanoGPT {statistics.median(theirs_speed):,.0f}; "
        f"ratio {statistics.median(ratios):.2f}x (from {min(ratios):.2f}x to {max(ratios):.2f}x)"
    )


if __name__ == "__main__":
    main()
