"""How many file-system operations each act of a worker takes, counted while the real code does it, and their cost here.

python -m benchmarks.file_operations
"""

import builtins
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One call each. Opening a file for reading stands for three on a network file system: open, read, close.
CALLS = (
    "stat",
    "listdir",
    "scandir",
    "link",
    "unlink",
    "replace",
    "rename",
    "mkdir",
    "utime",
    "chmod",
    "fsync",
    "open",
)
WEIGHTS = {"open": 3, "listdir": 3}
STUDY = """question: How many?
hypothesis: Few.
config:
  model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}
  train: {batch_size: 2, max_iters: 5, precision: fp32}
  runtime: {device: cpu}
sweep: {seeds: 40}
"""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls made inside, by name."""
    found: Counter[str] = Counter()
    real: dict[tuple[Any, str], Any] = {(os, name): getattr(os, name) for name in CALLS}
    real |= {(io, "open"): io.open for io in (builtins, __import__("io"))}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*arguments, **options)

        return call

    for (module, name), function in real.items():
        setattr(module, name, counting(name, function))
    try:
        yield found
    finally:
        for (module, name), function in real.items():
            setattr(module, name, function)


def weight(found: Counter[str]) -> int:
    """Operations that a file server sees."""
    return sum(count * WEIGHTS.get(name, 1) for name, count in found.items())


def operations() -> dict[str, int]:
    """Operations of each act, from the real code on a small study whose other runs are held on another machine."""
    with tempfile.TemporaryDirectory() as name:
        return _count_acts(Path(name))


def _count_acts(root: Path) -> dict[str, int]:
    from experiments import lease, marks, published
    from experiments.attempt import claim, settle
    from experiments.lock import resolve, write_lock
    from experiments.outcomes import Exit
    from experiments.queue import Queue
    from experiments.store import StudyFolder
    from experiments.study import Study

    os.environ["NANOGPT_ENGINE"] = "benchmarks.trivial_engine"
    from benchmarks.trivial_engine import train

    (root / "study.yaml").write_text(STUDY)
    results = root / "results"
    results.mkdir()
    write_lock(results, resolve(Study.load(root / "study.yaml")))
    study, found = StudyFolder(results), {}
    queue, claimant = Queue(study), lease.Claimant()
    runs = study.runs()

    def count(act: str, function: Callable[[], Any]) -> Any:
        with counted() as calls:
            answer = function()
        found[act] = weight(calls)
        return answer

    count("begin to look", lambda: next(queue.candidates()))
    count("look at a free run", lambda: queue.wants(runs[0]))
    attempt = count("claim it", lambda: claim(study, runs[0], claimant, 1))
    count("beat", lambda: lease.beat(attempt.lease))
    count("look for requests", lambda: (marks.stops(results), marks.cancel_path(attempt.lease.folder, 1).exists()))
    train(attempt.lease.folder, 1)
    settled = count("record its end", lambda: settle(attempt, Exit(0)))
    with counted() as calls:
        queue.ended(runs[0], settled)
    found["record its end"] += weight(calls)
    count("ask the list", lambda: published.noted(results))
    count("look at a finished run", lambda: queue.wants(runs[0]))
    held = claim(study, runs[1], lease.Claimant(holder=_elsewhere()), 1)
    assert held is not None
    count("look at a run held elsewhere", lambda: Queue.wants(queue, runs[1]))
    return found


def _elsewhere() -> Any:
    from experiments.lease import Holder

    return Holder("elsewhere", "another/machine", 1, "1", "x")


def local_microseconds(times: int = 300) -> dict[str, float]:
    """What single calls cost on the file system of the temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "file"
        file.write_text(json.dumps({"a": 1}))
        acts: dict[str, Callable[[int], Any]] = {
            "stat": lambda i: os.stat(file),
            "list": lambda i: os.listdir(folder),
            "read": lambda i: file.read_bytes(),
            "utime": lambda i: os.utime(file),
            "link": lambda i: os.link(file, folder / f"link{i}"),
        }
        cost = {}
        for act, function in acts.items():
            began = time.perf_counter()
            for i in range(times):
                function(i)
            cost[act] = (time.perf_counter() - began) / times * 1e6
        return cost


if __name__ == "__main__":
    for act, number in operations().items():
        print(f"{act:32} {number:3d}")
    for act, cost in local_microseconds().items():
        print(f"{act:32} {cost:7.1f} us here")
