"""An engine for benchmarks of the orchestrator: the trivial run, and the files that any run leaves.

It honours the engine's command line (see experiments/engine.py), so a real worker claims, forks, watches and publishes
it as it would a run of `nanogpt`; only the training is replaced.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from nanogpt.config import Config, run_id
from nanogpt.configfile import load_config
from nanogpt.record import Record, attempt_folder, write_record


def preload() -> None:
    """What the worker does once before it forks."""
    import benchmarks.trivial_work  # noqa: F401  (for the torch in it)


def main(argv: list[str]) -> int:
    if argv[0] == "describe":
        print(json.dumps([facts(Config.model_validate(tree)) for tree in json.load(sys.stdin)]))
        return 0
    return train(Path(argv[1]), int(argv[argv.index("--attempt") + 1]))


def facts(config: Config) -> dict[str, Any]:
    """Made-up sizes: nothing here depends on them."""
    resolved = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 256})})
    sizes = {"n_params": 1000, "n_params_non_embedding": 1000, "n_params_active": 1000, "parameters": {"hidden": 1000}}
    cost = {"steps": 1, "tokens": 1000, "flops": 6e6, "flops_per_token": 6000}
    disk = {"memory_bytes": 2**20, "checkpoint_bytes": 0, "files": {}}
    return {"config": resolved.model_dump(mode="json"), "id": run_id(resolved), **sizes, **cost, **disk}


def train(folder: Path, attempt: int) -> int:
    from benchmarks.trivial_work import work

    started, config = time.perf_counter(), load_config(folder / "config.yaml")
    home, loss, known = attempt_folder(folder, attempt), work(config.seed), facts(config)
    home.mkdir(parents=True, exist_ok=True)
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
