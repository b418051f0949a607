"""What reading costs a training step at nanoGPT's CPU settings, and how soon a run at step 100,000 reads again.

    python -m benchmarks.streaming [--steps 200] [--at 100000]

Model and batch are those of configs/shakespeare_char.yaml (nanoGPT's README settings for a CPU), eager, float32, one
thread. Corpora are made in a temporary folder: nanoGPT's one file, 20 shards in llm.c's layout, a mixture of both,
and a prepared corpus of 10^10 tokens in 100 shards (sparse files: they take no room). Steps with the prefetch thread
and steps on one fixed batch alternate. Two numbers per corpus, as shares of the step on a fixed batch:

    made    CPU time of making a batch, were it not made in another thread
    waited  wall time that the training thread waits for the batch of the prefetch thread

Exits with 1 where either is 2 % or more, or where a far step takes a second or more.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config import Config
from nanogpt.config.data import Data
from nanogpt.configfile import load_config
from nanogpt.data.manifest import Manifest, Shard, Split, SplitFiles, TokenizerFacts, content_hash, write_manifest
from nanogpt.data.opening import open_data
from nanogpt.data.prefetch import Prefetcher
from nanogpt.data.stream import Batch, Stream, make_stream

ROOT = Path(__file__).resolve().parent.parent
KINDS = 65
SHARE, SECONDS = 0.02, 1.0
WARM_UP = 10


def write_nanogpt(folder: Path, tokens: int = 1_003_854) -> Path:
    """train.bin and val.bin as large as tiny Shakespeare's."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", tokens), ("val", tokens // 9)):
        rng.integers(0, KINDS, size=count).astype("<u2").tofile(folder / f"{split}.bin")
    return folder


def write_shards(folder: Path, shards: int = 20, tokens: int = 1_000_000) -> Path:
    """Shards named and laid out as modded-nanogpt's."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(shards + 1):
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, tokens
        data = rng.integers(0, KINDS, size=tokens).astype("<u2").tobytes()
        split = "train" if number else "val"
        (folder / f"fineweb_{split}_{number:06d}.bin").write_bytes(header.tobytes() + data)
    return folder


def write_large(folder: Path, shards: int = 100, tokens: int = 100_000_000) -> Path:
    """A prepared corpus of sparse files."""
    folder.mkdir()
    tokenizer = TokenizerFacts(name="gpt2", fingerprint="0" * 64, n_vocab=50257, eot=50256)
    splits: dict[Split, SplitFiles] = {}
    counts: dict[Split, int] = {"train": shards, "val": 1}
    for split, count in counts.items():
        rows = []
        for number in range(count):
            path = folder / f"{split}_{number:06d}.bin"
            with path.open("wb") as file:
                file.truncate(2 * tokens)
            rows.append(Shard(file=path.name, tokens=tokens, bytes=2 * tokens, sha256=f"{split}{number}"))
        size = count * tokens
        splits[split] = SplitFiles(shards=tuple(rows), tokens=size, documents=1, text_bytes=4 * size)
    made: dict[str, Any] = {
        "name": "large",
        "source": {},
        "tokenizer": tokenizer,
        "layout": "nanogpt",
        "dtype": "uint16",
        "splits": splits,
        "content": content_hash(splits, tokenizer),
        "files": (),
    }
    write_manifest(folder, Manifest.model_validate(made))
    return folder


def open_stream(config: Config, data: dict[str, Any]) -> Stream:
    """The stream of the config with another corpus, from the files on."""
    section = Data.model_validate(data)
    corpus = open_data(section, config.runtime)
    return make_stream(corpus, config.train.batch_size, config.model.block_size, config.seed, section.sampling)


class Step:
    """One optimizer step of the config's model."""

    def __init__(self, config: Config) -> None:
        import torch

        from nanogpt.model import build_model
        from nanogpt.optim import build_optimizer

        torch.set_num_threads(1)
        device = torch.device("cpu")
        config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": KINDS})})
        self.model = build_model(config, device)
        self.optimizer = build_optimizer(self.model, config, device, steps=2000)

    def __call__(self, batch: Batch) -> None:
        import torch

        losses = self.model.losses(torch.from_numpy(batch.x_BT), torch.from_numpy(batch.y_BT))
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        losses.cross_entropy.item()


@contextmanager
def timed(into: list[float], clock: Any = time.perf_counter) -> Iterator[None]:
    started = clock()
    yield
    into.append(clock() - started)


def measure(step: Step, stream: Stream, steps: int, first: int) -> tuple[float, float, float]:
    """Medians in seconds: a step on a fixed batch, making a batch (CPU), waiting for one (wall)."""
    fixed = stream.batch(0)
    alone: list[float] = []
    waited: list[float] = []
    made: list[float] = []
    with Prefetcher(stream.batch, first, first + steps) as batches:
        for number in range(first, first + steps):
            with timed(waited):
                batch = batches.batch(number)
            step(batch)
            with timed(alone, time.thread_time):
                step(fixed)
    for number in range(first, first + steps):
        with timed(made, time.thread_time):
            stream.batch(number)
    middle = [statistics.median(times[WARM_UP:]) for times in (alone, made, waited)]
    return middle[0], middle[1], middle[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="What reading costs a training step.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--at", type=int, default=100_000, help="the step of a run that goes on")
    arguments = parser.parse_args()
    config = load_config(ROOT / "configs" / "shakespeare_char.yaml")
    step, failed = Step(config), False
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        nano, shards, large = (
            str(write(root / write.__name__)) for write in (write_nanogpt, write_shards, write_large)
        )
        mixture = {"kind": "mixture", "parts": [{"corpus": nano}, {"corpus": shards, "weight": 3}]}
        print(f"{'corpus':28} {'step ms':>8} {'made':>7} {'waited':>7}   step {arguments.at:,} after")
        for label, corpus in (
            ("nanoGPT's .bin", nano),
            ("20 shards", shards),
            ("mixture", mixture),
            ("1e10 tokens", large),
        ):
            for sampling in ("random", "shuffled"):
                opened: list[float] = []
                with timed(opened):
                    stream = open_stream(config, {"corpus": corpus, "sampling": sampling})
                    stream.batch(arguments.at)

                alone, made, waited = measure(step, stream, arguments.steps, arguments.at)
                bad = max(made, waited) / alone >= SHARE or opened[0] >= SECONDS
                failed |= bad
                print(
                    f"{label + ', ' + sampling:28} {alone * 1e3:8.2f} {made / alone:7.2%} {waited / alone:7.2%}   "
                    f"{opened[0] * 1e3:6.1f} ms{'   TOO SLOW' if bad else ''}"
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
