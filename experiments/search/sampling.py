"""Points of the unit cube as pure functions of (seed, index): independent random ones, and a scrambled Sobol sequence.

Run as a module it prints Sobol points as JSON: scipy stays out of the process that drives a study.
"""

import functools
import json
import random
import subprocess
import sys
from collections.abc import Sequence

from experiments.engine import child_environment
from experiments.search.spec import Sampler

Points = Sequence[Sequence[float]]


def unit_points(sampler: Sampler, dimensions: int, count: int) -> Points:
    """The first `count` points of a sampler, each of `dimensions` numbers in [0, 1). More points keep the first ones.

    Raises RuntimeError when the child that computes Sobol points breaks.
    """
    if sampler.kind == "sobol":
        return _sobol_elsewhere(sampler.seed, dimensions, (count - 1).bit_length())[:count]
    return [random_point(sampler.seed, dimensions, index) for index in range(count)]


def random_point(seed: int, dimensions: int, index: int) -> list[float]:
    """Point `index` of the random sampler. Python promises that seeding by text gives the same numbers everywhere."""
    generator = random.Random(f"{seed}/{index}")
    return [generator.random() for _ in range(dimensions)]


def sobol_points(seed: int, dimensions: int, power: int) -> Points:
    """2^power points of a Sobol sequence, scrambled as in Matousek 1998 by scipy.stats.qmc; any prefix is kept."""
    from scipy.stats import qmc

    return qmc.Sobol(dimensions, scramble=True, seed=seed).random_base2(power).tolist()


@functools.cache
def _sobol_elsewhere(seed: int, dimensions: int, power: int) -> Points:
    command = [sys.executable, "-m", "experiments.search.sampling", *map(str, (seed, dimensions, power))]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        raise RuntimeError(f"computing Sobol points failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(sobol_points(*map(int, sys.argv[1:4]))))
