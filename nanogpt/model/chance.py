"""Numbers drawn for an optimizer step from (seed, step), and the laws they follow, exactly and without torch.

A distribution is a mapping from each number to its probability.
"""

import bisect
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping
from statistics import NormalDist

from nanogpt.config.trunks import Depth, FixedLoops, LogNormalLoops

Distribution = Mapping[int, float]
NODES = 321  # of the sum over the logarithm of the rate, from -8 to 8 standard deviations: exact to rounding
REACH = 8.0


def numbers_for(seed: int, step: int, purpose: str) -> random.Random:
    """A source of random numbers that is a function of its arguments, and disturbs no other.

    `random()` alone is asked of it, whose values Python promises to keep.
    """
    return random.Random(seed_for(seed, step, purpose))


def seed_for(seed: int, step: int | None, purpose: str) -> int:
    """63 bits that differ wherever seed, step or purpose do."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}:{step}".encode()).digest()[:8], "big") >> 1


def between(low: int, high: int, numbers: random.Random) -> int:
    """A whole number from `low` to `high`, both included, all alike."""
    return low + int(numbers.random() * (high - low + 1))


@functools.cache
def law_of(depth: Depth) -> Distribution:
    """The law of the number of loops."""
    if isinstance(depth, FixedLoops):
        return {depth.loops: 1.0}
    if isinstance(depth, LogNormalLoops):
        return _rounded_lognormal(depth.mean_loops, depth.sigma, depth.max_loops)
    return _poisson_lognormal(depth.mean_loops, depth.sigma, depth.max_loops)


def _rounded_lognormal(mean: float, sigma: float, most: int) -> Distribution:
    if sigma == 0:
        return {min(max(1, math.floor(mean + 0.5)), most): 1.0}
    normal = NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    below = [0.0, *(normal.cdf(math.log(count + 0.5)) for count in range(1, most)), 1.0]
    return {count: high - low for count, (low, high) in enumerate(itertools.pairwise(below), start=1)}


def _poisson_lognormal(mean: float, sigma: float, most: int) -> Distribution:
    """1 + Poisson(rate) with ln(rate) normal, of this mean before the cut.

    In arXiv 2502.05171, section 3.3, the mean is that of the rate, one less.
    """
    centre = math.log(mean - 1) - sigma**2 / 2
    deviations = [REACH * (2 * node / (NODES - 1) - 1) for node in range(NODES)] if sigma else [0.0]
    weights = [math.exp(-(z**2) / 2) for z in deviations]
    found = {
        count: math.fsum(w * _poisson(centre + sigma * z, count - 1) for z, w in zip(deviations, weights, strict=True))
        / math.fsum(weights)
        for count in range(1, most)
    }
    return found | {most: max(0.0, 1 - math.fsum(found.values()))}


def _poisson(log_rate: float, count: int) -> float:
    return math.exp(count * log_rate - math.exp(log_rate) - math.lgamma(count + 1))


@functools.cache
def _cumulative(depth: Depth) -> tuple[list[int], list[float]]:
    law = law_of(depth)
    return list(law), list(itertools.accumulate(law.values()))


def draw_loops(depth: Depth, numbers: random.Random) -> int:
    """A number of loops by inversion of the law."""
    counts, cumulative = _cumulative(depth)
    return counts[min(bisect.bisect_right(cumulative, numbers.random()), len(counts) - 1)]


def quantile(law: Distribution, share: float) -> int:
    """The least number that is not exceeded with a probability of at least `share`."""
    total = 0.0
    for count in sorted(law):
        total += law[count]
        if total >= share:
            return count
    return max(law)


def mean_of(law: Distribution, of: Callable[[int], float] = float) -> float:
    """The expectation of `of(number)`."""
    return math.fsum(chance * of(count) for count, chance in law.items())


def uniform(low: int, high: int) -> Distribution:
    return dict.fromkeys(range(low, high + 1), 1 / (high - low + 1))


def shifted(law: Distribution, by: int) -> Distribution:
    return {count + by: chance for count, chance in law.items()}


def total(left: Distribution, right: Distribution) -> Distribution:
    """The law of the sum of two independent numbers."""
    return _joined(left, right, lambda a, b: a + b)


def larger(left: Distribution, right: Distribution) -> Distribution:
    """The law of the larger of two independent numbers."""
    return _joined(left, right, max)


def _joined(left: Distribution, right: Distribution, join: Callable[[int, int], int]) -> Distribution:
    found: dict[int, float] = {}
    for (a, p), (b, q) in itertools.product(left.items(), right.items()):
        found[join(a, b)] = found.get(join(a, b), 0.0) + p * q
    return found
