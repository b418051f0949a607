"""A shuffled order of 0 .. n-1 that is computed place by place, in constant memory: a keyed permutation.

A Feistel network permutes the numbers of an even count of bits (Luby & Rackoff 1988: four rounds of a good round
function suffice); what falls outside is sent through again until it is inside (cycle walking, Black & Rogaway 2002).
Only integer arithmetic modulo 2^64: every machine and every version of NumPy gives the same order.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
U64 = NDArray[np.uint64]


def draw_keys(*entropy: int) -> U64:
    """The key of a permutation, from numbers of at least 0 that say which one it is."""
    return np.asarray(np.random.SeedSequence(entropy).generate_state(ROUNDS, np.uint64), dtype=np.uint64)


def permute(places: NDArray[np.int64], size: int, keys: U64) -> NDArray[np.int64]:
    """Where a shuffle of 0 .. size-1 sends each of `places`; a bijection for every key."""
    half = max(1, -(-(size - 1).bit_length() // 2))
    found = _network(places.astype(np.uint64), half, keys)
    outside = np.flatnonzero(found >= size)
    while outside.size:  # the domain is less than four times as large, so this ends after a few rounds
        found[outside] = _network(found[outside], half, keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _network(values: U64, half: int, keys: U64) -> U64:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: U64) -> U64:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
