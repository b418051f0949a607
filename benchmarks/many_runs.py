"""Studies of 10,000 runs: how long planning, locking and the status take. Used by benchmarks.orchestrator."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDY = """question: How fast?
hypothesis: Fast.
config:
  model: {n_head: 2, block_size: 64}
  data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}
  train: {batch_size: 4, max_iters: 10, precision: fp32}
  runtime: {device: cpu}
sweep:
  grid:
    n_layer: {range: {start: 1, stop: 11}}
    n_embd: {range: {start: 16, stop: 176, step: 16}}
    learning_rate: {logspace: {start: 1.0e-4, stop: 1.0e-2, num: 10}}
  seeds: 10
"""
EXPAND = "import sys; from experiments.study import Study; assert len(Study.load(sys.argv[1]).runs()) == 10_000"
UNFINISHED = 10  # every tenth run is not published


def measure(repeats: int) -> dict[str, list[float]]:
    """Seconds of each command, as a person waits for it: from the start of its process to its end."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "many.yaml"
        path.write_text(STUDY)
        results = _locked(path, folder)
        _pretend_to_run(results)
        sides = {
            "expansion and validation": ["-c", EXPAND, path],
            "plan, with the facts of 100 shapes": ["-m", "experiments", "plan", path, "--out", folder / "elsewhere"],
            "status, 9,000 published, from the lock": ["-m", "experiments", "status", results],
            "plan again, from the lock": ["-m", "experiments", "plan", path, "--out", folder],
        }
        for _ in range(repeats):
            for side, command in sides.items():
                found.setdefault(side, []).append(_seconds(command))
        print(f"the lock has {(results / 'study.lock.json').stat().st_size / 1e6:.1f} MB")
    return found


def _seconds(command: list[object]) -> float:
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def _locked(path: Path, folder: Path) -> Path:
    from experiments.lock import resolve, write_lock
    from experiments.study import Study

    results = folder / "many"
    results.mkdir()
    write_lock(results, resolve(Study.load(path)))
    return results


def _pretend_to_run(results: Path) -> None:
    """The files that ten thousand runs leave, without training them."""
    from experiments.lease import this_process
    from experiments.store import StudyFolder
    from nanogpt.record import Record, attempt_folder, to_json

    holder = json.dumps(vars(this_process()))
    for number, run in enumerate(StudyFolder(results).runs()):
        folder = results / run.name
        home = attempt_folder(folder, 1)
        home.mkdir(parents=True)
        (folder / "lease.1").write_text(holder)
        (folder / "lease.1.released").touch()
        for name in ("config.yaml", "launch.sh", "history.jsonl"):
            (folder / name).touch()
        if number % UNFINISHED:
            sizes = {key: getattr(run, key) for key in ("steps", "tokens", "flops", "flops_per_token", "parameters")}
            sizes |= {key: getattr(run, key) for key in ("n_params", "n_params_non_embedding", "n_params_active")}
            record = Record(
                id=run.id, status="completed", val_loss=3.0, wall_seconds=1.0, cpu_seconds=1.0, attempts=1,
                seed=run.config["seed"], config=run.config, factors=run.factors, environment={}, **sizes,
            )  # fmt: skip
            (folder / "metrics.json").write_text(to_json(record.model_dump(mode="json")))
