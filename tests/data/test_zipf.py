"""The embedded corpus: its law, its text and its entropy."""

import hashlib

import numpy as np
import pytest

from nanogpt.config.data import ZipfMixture
from nanogpt.data import zipf

SMALL = ZipfMixture(alphabet_size=16, lags=2, train_tokens=2**15, val_tokens=4096)


def test_the_law_is_a_law() -> None:
    """Over every next token, the conditional probabilities of any history add up to one."""
    process = zipf.make_process(SMALL)
    history = np.random.default_rng(0).integers(0, 16, size=(50, 1, 2))
    following = np.arange(16).reshape(1, 16, 1)
    text = np.concatenate([np.broadcast_to(history, (50, 16, 2)), np.broadcast_to(following, (50, 16, 1))], axis=2)
    assert np.exp(zipf.log_prob(process, text)[..., 0]).sum(axis=1) == pytest.approx(1.0, abs=1e-12)


def test_probability_by_hand() -> None:
    process = zipf.make_process(SMALL)
    older, newer, target = 3, 7, 5
    expected = 0.15 * process.unigram[target]
    for lag, token in ((1, newer), (2, older)):
        for component, weight in enumerate((0.7, 0.3)):
            hit = process.successor[lag - 1, component, token] == target
            expected += 0.85 * (1 / lag) / 1.5 * weight * hit
    found = zipf.log_prob(process, np.array([older, newer, target]))
    assert np.exp(found) == pytest.approx([expected], rel=1e-12)


def test_permutations_stay_within_octaves() -> None:
    process = zipf.make_process(ZipfMixture())
    for low, high in ((0, 4), (4, 8), (8, 16), (128, 256)):
        block = process.successor[:, :, low:high]
        assert (np.sort(block, axis=-1) == np.arange(low, high)).all()


def test_text_follows_the_law() -> None:
    """Sampled frequencies after one history match the exact conditional probabilities."""
    process = zipf.make_process(SMALL)
    text = zipf.sample(process, chains=512, length=2000, rng=np.random.default_rng(1))
    older, newer = 0, 0
    after = text[:, 2:][(text[:, :-2] == older) & (text[:, 1:-1] == newer)]
    assert len(after) > 15_000
    seen = np.bincount(after, minlength=16) / len(after)
    window = np.stack([np.full(16, older), np.full(16, newer), np.arange(16)], axis=1)
    assert seen == pytest.approx(np.exp(zipf.log_prob(process, window)[:, 0]), abs=0.01)


def test_entropy_rate_is_that_of_an_independent_sample() -> None:
    process = zipf.make_process(ZipfMixture())
    one, other = (
        zipf.entropy_rate(process, zipf.sample(process, 200, 2000, np.random.default_rng(seed))) for seed in (1, 2)
    )
    assert abs(one.mean - other.mean) < 4 * (one.stderr**2 + other.stderr**2) ** 0.5
    assert 1.7 < one.mean < 2.1
    unigram = zipf.make_process(ZipfMixture()).unigram
    assert one.mean < -(unigram * np.log(unigram)).sum()


def test_a_mixture_without_memory_has_its_unigram_entropy() -> None:
    process = zipf.make_process(ZipfMixture(unconditional=1.0))
    expected = -(process.unigram * np.log(process.unigram)).sum()
    found = zipf.entropy_rate(process, zipf.sample(process, 300, 2000, np.random.default_rng(3)))
    assert abs(found.mean - expected) < 4 * found.stderr


def test_text_is_a_pure_function_of_the_config() -> None:
    """Golden: the same text on every machine and version. A change here needs a new `version` in the config."""
    text = zipf.generate(SMALL, "train", SMALL.train_tokens)
    assert text.shape == (8, zipf.DOCUMENT)
    digest = hashlib.sha256(text.astype("<u2").tobytes()).hexdigest()
    assert digest == "444774c00a254f971234d47031d5ba36a32a2e76305fe66b8f291392a479bc5b"
    other = zipf.generate(SMALL.model_copy(update={"source_seed": 1}), "train", SMALL.train_tokens)
    assert not np.array_equal(text, other)
    assert not np.array_equal(text, zipf.generate(SMALL, "val", SMALL.train_tokens))
