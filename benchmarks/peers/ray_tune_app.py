"""The trivial run as a grid of Ray Tune: `python benchmarks/peers/ray_tune_app.py RUNS SLOTS FOLDER`."""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[2])


def run(config: dict[str, Any]) -> dict[str, float]:
    sys.path.insert(0, ROOT)
    from benchmarks.trivial_work import work

    return {"loss": work(config["seed"])}


def main(runs: int, slots: int, folder: str) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import ray
    from ray import tune

    ray.init("local", num_cpus=slots, include_dashboard=False, log_to_driver=False)
    grid = {"seed": tune.grid_search(list(range(1, runs + 1)))}
    results = tune.Tuner(run, param_space=grid, run_config=tune.RunConfig(storage_path=folder, verbose=0)).fit()
    assert len(results) == runs
    assert not results.errors


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
