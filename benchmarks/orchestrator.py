"""What the orchestrator costs: per run beside other ways to start a grid, per study of 10,000 runs, per slot.

    python -m benchmarks.orchestrator [grid] [real] [many] [slots] [--repeats 3] [--peers PYTHON]

`grid`   100 trivial runs (about ten milliseconds of torch each) on two slots, side by side: this orchestrator whole
         (`python -m experiments run`: plan, worker, leases, records), cold `python run.py`, and Hydra's basic and
         joblib launchers and Ray Tune where PYTHON has them
`real`   the same with the real engine on a minimal config, beside cold `python -m nanogpt train`
`many`   planning, locking and the status of 10,000 runs
`slots`  two training runs at once on one thread each, beside each of them alone

Sides are measured in turn, `--repeats` times, and ratios are taken within a turn: what else the machine does falls on
all of them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
SLOTS, WARM_RUNS, COLD_RUNS, TUNE_RUNS = 2, 100, 8, 8
TINY = "{n_layer: 1, n_head: 1, n_embd: 8, block_size: 8}"
TRAIN = "batch_size: 2, max_iters: 5, eval_tokens: 1024"
CORPUS = "{corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}"


@dataclass(frozen=True)
class Side:
    """One way to do the same: `measure` gives milliseconds per run, in a fresh folder."""

    name: str
    runs: int
    measure: Callable[[Path], float]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def timed(command: Sequence[object], folder: Path, **more: str) -> float:
    """Seconds of a command that must succeed, run in `folder`."""
    began = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment(**more), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def study(
    folder: Path, sweep: str, train: str = "batch_size: 2, max_iters: 5, eval_tokens: 1024", model: str = TINY
) -> Path:
    path = folder / "study.yaml"
    text = f"question: How fast?\nhypothesis: Fast.\nsweep: {sweep}\nconfig:\n  model: {model}\n  data: {CORPUS}\n"
    path.write_text(f"{text}  train: {{{train}, precision: fp32}}\n  runtime: {{device: cpu, threads: 1}}\n")
    return path


def warm(engine: str) -> Callable[[Path], float]:
    """The whole command of a person: plan, lock, start a worker, train, publish."""

    def measure(folder: Path) -> float:
        asked = study(folder, f"{{seeds: {WARM_RUNS}}}")
        command = [sys.executable, "-m", "experiments", "run", asked, "--no-report", "--jobs", SLOTS, "--out", folder]
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        seconds = timed(command, folder, NANOGPT_ENGINE=engine)
        cpu.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before)
        published = sorted(path.stat().st_mtime for path in folder.glob("*/*/metrics.json"))
        assert len(published) == WARM_RUNS
        totals.append(seconds)
        steady.append((published[-1] - published[0]) / (WARM_RUNS - 1) * 1e3)
        return seconds / WARM_RUNS * 1e3

    return measure


totals: list[float] = []
steady: list[float] = []
cpu: list[float] = []


def at_a_time(commands: Sequence[Sequence[object]], folder: Path) -> float:
    """Milliseconds per command, as many at a time as there are slots."""
    began = time.perf_counter()
    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(lambda command: timed(command, folder), commands))
    return (time.perf_counter() - began) / len(commands) * 1e3


def cold_trivial(folder: Path) -> float:
    script = HERE / "trivial_work.py"
    return at_a_time([[sys.executable, script, folder / f"{i}.json", i] for i in range(COLD_RUNS)], folder)


def cold_real(folder: Path) -> float:
    config = folder / "config.yaml"
    config.write_text(
        study(folder, "{}").read_text().partition("config:\n")[2].replace("\n  ", "\n").removeprefix("  ")
    )
    command = [sys.executable, "-m", "nanogpt", "train", config]
    return at_a_time([[*command, f"--seed={i}", f"--out_dir={folder / str(i)}"] for i in range(COLD_RUNS)], folder)


def hydra(python: str, *launcher: str) -> Callable[[Path], float]:
    seeds = ",".join(map(str, range(WARM_RUNS)))
    command = [python, HERE / "peers" / "hydra_app.py", "-m", f"+seed={seeds}", *launcher]
    return lambda folder: timed(command, folder) / WARM_RUNS * 1e3


def ray_tune(python: str) -> Callable[[Path], float]:
    command = [python, HERE / "peers" / "ray_tune_app.py", TUNE_RUNS, SLOTS]
    return lambda folder: timed([*command, folder], folder) / TUNE_RUNS * 1e3


def has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def peers(python: str) -> list[Side]:
    """Those that are installed; the others are named."""
    joblib = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={SLOTS}")
    known = [
        ("hydra", Side("Hydra, basic launcher", WARM_RUNS, hydra(python))),
        ("hydra_plugins.hydra_joblib_launcher", Side("Hydra, joblib launcher", WARM_RUNS, hydra(python, *joblib))),
        ("ray.tune", Side("Ray Tune", TUNE_RUNS, ray_tune(python))),
    ]
    there = {module: has(python, module) for module, _ in known}
    for module, side in known:
        if not there[module]:
            print(f"skipped: {side.name}: {python} has no {module}")
    return [side for module, side in known if there[module]]


def compare(sides: Sequence[Side], repeats: int) -> None:
    """Measure all sides in turn and print each with its ratio to the first, which is ours."""
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                found[side.name].append(side.measure(Path(folder)))
    ours = found[sides[0].name]
    print(f"{'':34} {'runs':>5} {'ms per run':>11}  {'from':>7} {'to':>7}  {'of ours':>8}  from-to")
    for side in sides:
        taken = found[side.name]
        ratios = [other / own for other, own in zip(taken, ours, strict=True)]
        print(f"{side.name:34} {side.runs:5d} {statistics.median(taken):11.1f}  {min(taken):7.1f} {max(taken):7.1f}  "
              f"{statistics.median(ratios):7.1f}x  {min(ratios):.1f}-{max(ratios):.1f}", flush=True)  # fmt: skip
    for name, values, unit in (("in all", totals, "s"), ("CPU", cpu, "s"), ("between two results", steady, "ms")):
        print(f"ours, {name}: {statistics.median(values):.2f} {unit} ({min(values):.2f}-{max(values):.2f})")
        values.clear()


def grid(arguments: argparse.Namespace) -> None:
    print(f"\n## {WARM_RUNS} trivial runs on {SLOTS} slots, from the command to the last record")
    ours = Side("this orchestrator, warm", WARM_RUNS, warm("benchmarks.trivial_engine"))
    cold = Side("cold python run.py", COLD_RUNS, cold_trivial)
    compare([ours, cold, *peers(arguments.peers)], arguments.repeats)


def real(arguments: argparse.Namespace) -> None:
    print(f"\n## {WARM_RUNS} runs of the real engine, five steps of a minimal model, on {SLOTS} slots")
    ours = Side("this orchestrator, warm", WARM_RUNS, warm("nanogpt"))
    compare([ours, Side("cold python -m nanogpt train", COLD_RUNS, cold_real)], arguments.repeats)


def many(arguments: argparse.Namespace) -> None:
    from benchmarks.many_runs import measure

    print("\n## 10,000 runs: 100 shapes by 100 settings")
    for name, seconds in measure(arguments.repeats).items():
        print(f"{name:44} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f}-{max(seconds):.2f})", flush=True)


def slots(arguments: argparse.Namespace) -> None:
    """Speed of two runs at once over the speed of each alone, from their own records.

    By the clock, and per CPU second: on a machine that others use as well, only the latter tells of our own doing.
    """
    print("\n## two runs at once, one thread each, over each alone: tokens per second, and per CPU second")
    sweep = "{points: [{n_layer: 2, n_embd: 96}, {n_layer: 4, n_embd: 64}]}"
    shares: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            alone, both = (_speeds(Path(folder), sweep, jobs) for jobs in (1, 2))
        for label, speed in alone.items():
            shares.setdefault(label, []).append((both[label].clock / speed.clock, both[label].cpu / speed.cpu))
    for label, found in shares.items():
        clock, cpu = zip(*found, strict=True)
        print(f"{label:24} {statistics.median(clock):.2f}x of its speed alone ({min(clock):.2f}-{max(clock):.2f}); "
              f"{statistics.median(cpu):.2f}x per CPU second ({min(cpu):.2f}-{max(cpu):.2f})", flush=True)  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """Tokens per second inside optimizer steps, and per CPU second of the whole run."""

    clock: float
    cpu: float


def _speeds(folder: Path, sweep: str, jobs: int) -> dict[str, Speed]:
    asked = study(folder, sweep, "batch_size: 8, max_iters: 300, eval_tokens: 1024", "{n_head: 4, block_size: 64}")
    out = folder / str(jobs)
    command = [sys.executable, "-m", "experiments", "run", asked, "--no-report", "--jobs", jobs, "--out", out]
    timed(command, folder)
    records = [json.loads(path.read_text()) for path in out.glob("*/*/metrics.json")]
    return {
        "-".join(f"{key.split('.')[-1]}={value}" for key, value in record["factors"].items()): Speed(
            record["tokens_per_second"], record["tokens"] / record["cpu_seconds"]
        )
        for record in records
    }


SECTIONS = {"grid": grid, "real": real, "many": many, "slots": slots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="an interpreter with Hydra and Ray")
    given = parser.parse_args()
    if unknown := [name for name in given.sections if name not in SECTIONS]:
        parser.error(f"no such section: {unknown[0]}; there are {', '.join(SECTIONS)}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for name in given.sections:
        SECTIONS[name](given)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
