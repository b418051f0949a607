"""An engine for benchmarks of the orchestrator: about ten milliseconds of torch a run, and the files a run leaves.

It honours the engine's command line (see experiments/engine.py), so a real worker claims, forks, watches and publishes
it as it would a run of `nanogpt`; only the training is replaced.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nanogpt.config import Config, run_id
from nanogpt.configfile import load_config
from nanogpt.record import Record, attempt_folder, write_record

SIZE, PRODUCTS = 256, 10


def work() -> float:
    """Ten products of float32 matrices of 256 x 256 on one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, SIZE, SIZE, generator=generator)
    for _ in range(PRODUCTS):
        right = left @ right / SIZE
    return float(right.square().mean())


def main(argv: list[str]) -> int:
    if argv[0] == "describe":
        print(json.dumps([facts(Config.model_validate(tree)) for tree in json.load(sys.stdin)]))
        return 0
    folder = Path(argv[1])
    return train(folder, int(argv[argv.index("--attempt") + 1]))


def facts(config: Config) -> dict[str, Any]:
    """Made-up sizes: nothing here depends on them."""
    resolved = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 256})})
    sizes = {"n_params": 1000, "n_params_non_embedding": 1000, "n_params_active": 1000, "parameters": {"hidden": 1000}}
    cost = {"steps": 1, "tokens": 1000, "flops": 6e6, "flops_per_token": 6000}
    disk = {"memory_bytes": 2**20, "checkpoint_bytes": 0, "files": {}}
    return {"config": resolved.model_dump(mode="json"), "id": run_id(resolved), **sizes, **cost, **disk}


def train(folder: Path, attempt: int) -> int:
    started, config = time.perf_counter(), load_config(folder / "config.yaml")
    home, loss = attempt_folder(folder, attempt), work()
    known = facts(config)
    line = {"step": 1, "tokens": known["tokens"], "flops": known["flops"], "train_loss": loss}
    (home / "history.jsonl").write_text(json.dumps(line) + "\n")
    told = {key: value for key, value in known.items() if key in Record.model_fields}
    seconds = time.perf_counter() - started
    record = Record(
        **told, status="completed", val_loss=loss, wall_seconds=seconds, cpu_seconds=seconds, seed=config.seed,
        attempts=attempt, environment={},
    )  # fmt: skip
    write_record(home / "outcome.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
