"""The speed of `prepare` beside the bare tokenizer's, in one run, on text that every machine has.

    python -m benchmarks.prepare [--megabytes 100] [--workers 2] [--rounds 3] [--text FILE ...]

The text is Python's own library, with the files of --text, repeated in another order until it is long enough. Bare is
tiktoken's `encode_ordinary` on texts that lie in memory, in `workers` processes at once, each with its share; `prepare`
is the whole command: it starts, reads and hashes the sources, tokenizes, splits, writes and hashes the shards. The
sides take turns, and a ratio is taken within a turn. Ratios by CPU time do not see what else the machine does.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BARE = """
import json, sys, time
from nanogpt.data.tokenizers import load_tokenizer
encoding = load_tokenizer("gpt2")._encoding
texts = [json.loads(line)["text"] for line in open(sys.argv[1])][int(sys.argv[2])::int(sys.argv[3])]
encoding.encode_ordinary("warm up")
print(flush=True); sys.stdin.readline()
wall, cpu = time.perf_counter(), time.process_time()
tokens = sum(len(encoding.encode_ordinary(text)) for text in texts)
print(time.perf_counter() - wall, time.process_time() - cpu, tokens)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of CPU over all processes, and the tokens made."""

    wall: float
    cpu: float
    tokens: int


def texts(megabytes: int, more: list[Path]) -> Iterator[str]:
    """Documents of altogether so many megabytes."""
    paths = [*Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), *more]
    paths += Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py")
    found = [text for path in sorted(paths) if (text := _read(path))]
    order, left, turn = random.Random(0), megabytes * 10**6, 0
    while True:
        order.shuffle(found)
        turn += 1
        for text in found:
            yield f"{turn}\n{text}"  # no two alike
            left -= len(text.encode())
            if left <= 0:
                return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def bare(path: Path, workers: int) -> Cost:
    """tiktoken alone, in so many processes at once."""
    processes = [
        subprocess.Popen([sys.executable, "-c", BARE, str(path), str(n), str(workers)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True) for n in range(workers)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it has the texts
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0].split() for process in processes]
    return Cost(max(float(wall) for wall, _, _ in told), sum(float(cpu) for _, cpu, _ in told),
                sum(int(tokens) for _, _, tokens in told))  # fmt: skip


def prepared(path: Path, workers: int, root: Path) -> Cost:
    """The whole command."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    wall, cpu = time.perf_counter(), used()
    command = [sys.executable, "-m", "nanogpt", "prepare", "mixed", "--from", str(path), "--data_dir", str(root)]
    subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
    wall, cpu = time.perf_counter() - wall, used() - cpu
    splits = json.loads((root / "mixed.gpt2" / "manifest.json").read_text())["splits"].values()
    return Cost(wall, cpu, sum(split["tokens"] - split["documents"] for split in splits))


def main() -> None:
    """Measure, and print a line for each round and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    by_wall, by_cpu = [], []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "mixed.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for text in texts(arguments.megabytes, arguments.text):
                file.write(json.dumps({"text": text}) + "\n")
        for turn in range(arguments.rounds):
            alone = bare(path, arguments.workers)
            whole = prepared(path, arguments.workers, Path(place) / f"data{turn}")
            assert whole.tokens == alone.tokens, (whole, alone)
            by_wall.append(alone.wall / whole.wall)
            by_cpu.append(alone.cpu / whole.cpu)
            print(
                f"bare {alone.wall:.1f} s ({alone.cpu:.1f} s of CPU), prepare {whole.wall:.1f} s ({whole.cpu:.1f}); "
                f"prepare to bare x {arguments.workers}: {by_wall[-1]:.2f} by the clock, {by_cpu[-1]:.2f} by CPU; "
                f"{whole.tokens:,} tokens, {whole.tokens / whole.wall / 1e6:.2f} M/s",
                flush=True,
            )
    print(f"median: {statistics.median(by_wall):.2f} by the clock, {statistics.median(by_cpu):.2f} by CPU time")


if __name__ == "__main__":
    main()
