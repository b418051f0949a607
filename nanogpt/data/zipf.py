"""The multi-lag Zipf mixture: a random text whose every conditional probability, and so its entropy rate, is known.

P(x_t | past) = w0 u(x_t) + sum_{k=1..K} w_k sum_j c_j 1[x_t = sigma_kj(x_{t-k})]

u is a Zipf law, w_k falls as 1/k, c = (0.7, 0.3), and each sigma_kj is a fixed permutation of the vocabulary that moves
tokens only within an octave of frequency ranks (1-4, 5-8, 9-16, ...), so that every component keeps the Zipf shape.
The model class is the mixture transition distribution (Raftery 1985; Berchtold & Raftery 2002).
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.data import ZipfMixture

COMPONENT_WEIGHTS = np.array([0.7, 0.3])
BURN_IN = 64  # steps from the unigram start to the stationary law; the past beyond `lags` tokens carries nothing
DOCUMENT = 4096  # tokens of one independent chain; windows never cross from one chain into the next

Tokens = NDArray[np.uint16]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Process:
    """The mixture's law: `unigram[V]`, the weight of each lag `lag_weights[K]`, and `successor[K, 2, V]` = sigma."""

    unigram: Floats
    unconditional: float
    lag_weights: Floats
    successor: NDArray[np.int64]

    @property
    def lags(self) -> int:
        return len(self.lag_weights)


def _octaves(vocab_size: int) -> list[tuple[int, int]]:
    """Half-open ranges of frequency ranks: [0, 4), [4, 8), [8, 16), ..."""
    edges = [0, 4]
    while edges[-1] < vocab_size:
        edges.append(2 * edges[-1])
    edges = [min(edge, vocab_size) for edge in edges]
    return list(itertools.pairwise(edges))


def make_process(config: ZipfMixture) -> Process:
    """The law that a config's `source_seed` draws."""
    rank = np.arange(1, config.alphabet_size + 1, dtype=np.float64)
    unigram = rank**-config.zipf_exponent
    weights = 1.0 / np.arange(1, config.lags + 1)
    rng = np.random.default_rng([config.source_seed, 0])
    successor = np.empty((config.lags, len(COMPONENT_WEIGHTS), config.alphabet_size), dtype=np.int64)
    for lag in range(config.lags):
        for component in range(len(COMPONENT_WEIGHTS)):
            for low, high in _octaves(config.alphabet_size):
                # argsort of uniforms, not rng.permutation: it rests on the uniform stream alone.
                successor[lag, component, low:high] = low + np.argsort(rng.random(high - low))
    return Process(
        unigram / unigram.sum(), config.unconditional, (1 - config.unconditional) * weights / weights.sum(), successor
    )


def sample(process: Process, chains: int, length: int, rng: np.random.Generator) -> Tokens:
    """`chains` independent stretches of `length` tokens from the stationary law; shape [chains, length]."""
    unigram = np.cumsum(process.unigram)
    branches = np.cumsum(np.concatenate([[process.unconditional], np.repeat(process.lag_weights, 2)
                                         * np.tile(COMPONENT_WEIGHTS, process.lags)]))  # fmt: skip
    last = len(process.unigram) - 1
    table = process.successor.reshape(-1, len(process.unigram))
    lag_of = np.concatenate([[1], np.repeat(np.arange(1, process.lags + 1), 2)])
    row = np.arange(chains)
    total = process.lags + BURN_IN + length
    out = np.empty((total, chains), dtype=np.uint16)
    for t in range(total):
        fresh = np.minimum(np.searchsorted(unigram, rng.random(chains)), last)
        if t < process.lags:
            out[t] = fresh
            continue
        branch = np.minimum(np.searchsorted(branches, rng.random(chains)), len(branches) - 1)
        follow = table[np.maximum(branch, 1) - 1, out[t - lag_of[branch], row]]
        out[t] = np.where(branch == 0, fresh, follow)
    return np.ascontiguousarray(out[process.lags + BURN_IN :].T)


def log_prob(process: Process, text: NDArray[Any]) -> Floats:
    """ln P(x_t | its `lags` predecessors) for t >= lags along the last axis; nats, shape [..., length - lags]."""
    lags, length = process.lags, text.shape[-1]
    tokens = text.astype(np.int64)
    target = tokens[..., lags:]
    prob = process.unconditional * process.unigram[target]
    for lag in range(1, lags + 1):
        past = tokens[..., lags - lag : length - lag]
        for component, weight in enumerate(COMPONENT_WEIGHTS):
            hit = process.successor[lag - 1, component][past] == target
            prob += process.lag_weights[lag - 1] * weight * hit
    return np.log(prob)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    stderr: float


def entropy_rate(process: Process, documents: Tokens) -> Estimate:
    """The entropy rate in nats per token: the average of -ln P over [chains, length], error over independent chains."""
    per_chain = -log_prob(process, documents).mean(axis=1)
    spread = float(per_chain.std(ddof=1)) if len(per_chain) > 1 else 0.0
    return Estimate(float(per_chain.mean()), spread / len(per_chain) ** 0.5)


def generate(config: ZipfMixture, split: str, tokens: int) -> Tokens:
    """The text of a split, whole documents of shape [documents, DOCUMENT]; a pure function of the config."""
    documents = -(-tokens // DOCUMENT)
    rng = np.random.default_rng([config.source_seed, {"train": 1, "val": 2}[split]])
    return sample(make_process(config), documents, DOCUMENT, rng)
