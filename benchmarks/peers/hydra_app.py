"""The trivial run under Hydra: `python benchmarks/peers/hydra_app.py -m +seed=1,2,3 [hydra/launcher=joblib]`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@hydra.main(version_base=None)
def main(config: DictConfig) -> float:
    from benchmarks.trivial_work import work

    return work(config.seed)


if __name__ == "__main__":
    main()
