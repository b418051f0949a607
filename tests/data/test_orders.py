"""Orders of windows: each once per epoch, the same from any step, dealt by weight, and counted honestly."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from nanogpt.config import UserError
from nanogpt.data.opening import OpenCorpus, OpenMixture, OpenPart
from nanogpt.data.orders import deal, dealt, expected_unique, random_starts, random_windows
from nanogpt.data.permutation import draw_keys, permute
from nanogpt.data.stream import MixedStream, Sampling, Stream, TrainStream, make_eval_set
from nanogpt.data.tokenfiles import Shards
from tests.data.test_stream import counting


class InMemory(Shards):
    """Shards of an array, cut at the given lengths."""

    def __init__(self, whole: np.ndarray, lengths: list[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole)

    def windows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        return self._whole[starts_B[:, None] + np.arange(length)]


def sharded(*lengths: int) -> OpenCorpus:
    """A corpus in several files, whose tokens are their own positions."""
    whole = np.arange(sum(lengths), dtype=np.int64)
    return OpenCorpus(2**31, InMemory(whole, list(lengths)), np.arange(100, dtype=np.int64))


def starts(stream: Stream, first: int, steps: int) -> list[int]:
    return [int(start) for step in range(first, first + steps) for start in stream.batch(step).x_BT[:, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_permutation_is_one(size: int) -> None:
    shuffled = permute(np.arange(size), size, draw_keys(1, 2))
    assert sorted(shuffled) == list(range(size))
    assert np.array_equal(shuffled, permute(np.arange(size), size, draw_keys(1, 2)))
    assert size < 64 or not np.array_equal(shuffled, permute(np.arange(size), size, draw_keys(1, 3)))


def test_a_permutation_looks_random() -> None:
    """Over 1,500 keys, every place goes everywhere (chi-square), and neighbours do not stay neighbours."""
    size, trials = 10, 1500
    table = np.array([permute(np.arange(size), size, draw_keys(7, key)) for key in range(trials)])
    counts = np.array([[(table[:, place] == to).sum() for to in range(size)] for place in range(size)])
    chi_square = ((counts - trials / size) ** 2 / (trials / size)).sum()
    assert chi_square < 130, "81 degrees of freedom: the 99.95 % point"
    ascending = (np.diff(table, axis=1) == 1).mean()
    assert ascending == pytest.approx(1 / size, abs=0.01)
    large = permute(np.arange(10**4), 10**12, draw_keys(3))
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.05
    assert len(np.unique(large)) == 10**4


def test_known_places_never_move() -> None:
    """A golden shuffle: another order would silently train other runs under old ids."""
    assert permute(np.arange(8), 8, draw_keys(1337, 0, 1)).tolist() == [1, 5, 3, 2, 7, 4, 0, 6]


def test_shuffled_windows_are_each_read_once_per_epoch() -> None:
    corpus = sharded(100, 7, 250, 33)  # the second is shorter than a window
    stream = TrainStream(corpus, 4, 8, seed=5, sampling="shuffled")
    windows = [start for first, length in ((0, 100), (107, 250), (357, 33)) for start in
               range(first, first + (length - 1) // 8 * 8, 8)]  # fmt: skip
    read = starts(stream, 0, len(windows))
    epochs = [read[place : place + len(windows)] for place in range(0, len(read), len(windows))]
    assert len(epochs) == 4
    assert all(sorted(epoch) == windows for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "in another order each time"
    assert read != starts(TrainStream(corpus, 4, 8, seed=6, sampling="shuffled"), 0, len(windows))
    files = [np.searchsorted([100, 107, 357], start, side="right") for start in epochs[0]]
    assert sum(a != b for a, b in itertools.pairwise(files)) == 2, "one file after the other"
    assert starts(stream, 30, 5) == read[120:140], "from any step on"


def test_shuffled_windows_stay_inside_documents() -> None:
    stream = TrainStream(counting(train=100, document=20), 5, 6, seed=0, sampling="shuffled")
    read = starts(stream, 0, 3)
    assert sorted(read) == [document * 20 + window * 6 for document in range(5) for window in range(3)]


def test_a_far_step_is_as_near_as_the_first() -> None:
    """Nothing is drawn, counted or kept on the way: a terabyte of windows, sought in the middle of epoch 1,000."""
    corpus = OpenCorpus(2**62, Endless(np.zeros(0), [100_000_001] * 5000), np.zeros(0))
    stream = TrainStream(corpus, 480, 1024, 0, "shuffled")
    started = time.process_time()
    batch = stream.batch(10**9)
    assert time.process_time() - started < 1.0
    assert len(np.unique(batch.x_BT[:, 0])) == 480


class Endless(InMemory):
    """Shards without their tokens: a window is its own start, over and over."""

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def windows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        return starts_B[:, None] + np.zeros(length, dtype=np.int64)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.2, 0.1), (0.999, 0.001), (1.0,), (0.25,) * 4])
def test_every_stretch_of_rows_has_its_shares(shares: tuple[float, ...]) -> None:
    whole = deal(shares, 0, 3000)
    pieces = [deal(shares, first, 100) for first in range(0, 3000, 100)]
    assert np.array_equal(np.concatenate([piece.part_B for piece in pieces]), whole.part_B)
    assert np.array_equal(np.concatenate([piece.number_B for piece in pieces]), whole.number_B)
    for part, share in enumerate(shares):
        mine = whole.part_B == part
        assert np.array_equal(whole.number_B[mine], np.arange(mine.sum())), "each of a part's rows once, in order"
        assert np.abs(np.cumsum(mine) - share * np.arange(1, 3001)).max() < len(shares), "never far from its share"
    assert dealt(shares, 1234) == [int((whole.part_B[:1234] == part).sum()) for part in range(len(shares))]
    far = deal(shares, 10**12, 1000)
    assert [int((far.part_B == part).sum()) for part in range(len(shares))] == pytest.approx(
        [1000 * share for share in shares], abs=len(shares)
    )
    assert far.number_B[far.part_B == 0][0] == pytest.approx(10**12 * shares[0], rel=1e-9)


@pytest.mark.parametrize("shape", [(200, None, 8), (200, None, 150), (120, 30, 10), (9, None, 8)])
def test_unique_tokens_of_random_windows(shape: tuple[int, int | None, int]) -> None:
    """The expectation against the mean of what 300 seeds really read."""
    rng, draws = np.random.default_rng(0), 25
    read = []
    for _ in range(300):
        begins = random_starts(rng.integers(0, random_windows(*shape), size=draws), *shape)
        read.append(len(np.unique(begins[:, None] + np.arange(shape[2]))))
    error = np.std(read) / 300**0.5
    assert expected_unique(draws, *shape) == pytest.approx(np.mean(read), abs=max(0.51, 4 * error + 0.5))
    assert expected_unique(0, *shape) == 0
    length, document, _ = shape
    assert expected_unique(10**9, *shape) == length - length // (document or length), "in the end all but the targets"


def test_usage_counts_repeats() -> None:
    stream = TrainStream(sharded(100, 101), 4, 10, seed=0, sampling="shuffled")  # 9 and 10 windows
    early, late = stream.usage(2), stream.usage(50)
    assert (early.tokens, early.unique_tokens, early.epochs) == (80, 80, 80 / 201)
    assert (late.tokens, late.unique_tokens, late.epochs) == (2000, 190, 2000 / 201)
    assert TrainStream(counting(), 4, 10, seed=0).usage(50).unique_tokens == pytest.approx(
        999 * (1 - np.exp(-2)), rel=0.01
    )


def two(sampling: Sampling) -> MixedStream:
    parts = (OpenPart("a", 0.75, sharded(400, 100)), OpenPart("b", 0.25, counting(train=50)))
    return MixedStream(OpenMixture(2**31, parts), 8, 10, 3, sampling)


@pytest.mark.parametrize("sampling", ["random", "shuffled"])
def test_a_mixture_is_a_function_of_the_step(sampling: Sampling) -> None:
    stream, again = two(sampling), two(sampling)
    batches = [stream.batch(step) for step in range(6)]
    for step in (5, 2, 0):
        assert np.array_equal(again.batch(step).x_BT, batches[step].x_BT)
    assert all((batch.y_BT - batch.x_BT == 1).all() for batch in batches)
    usages = stream.usage_of_parts(6)
    assert (usages["a"].tokens, usages["b"].tokens) == (360, 120), "6 of 8 rows, and 2 of 8"
    assert usages["b"].epochs == 120 / 50
    assert stream.usage(6).unique_tokens == usages["a"].unique_tokens + usages["b"].unique_tokens
    if sampling == "shuffled":
        assert usages["b"].unique_tokens == 40
        read = Counter(starts(stream, 0, 96))
        own = [*range(50, 390, 10), *range(400, 490, 10)]  # starts that the other part does not have
        assert {read[start] for start in own} == {12}, "576 rows are twelve epochs of 48 windows"


def test_a_part_that_is_too_short_is_named() -> None:
    parts = (OpenPart("long", 0.5, counting()), OpenPart("short", 0.5, counting(train=8)))
    with pytest.raises(UserError, match=r"block_size=16: does not fit part short, whose train split"):
        MixedStream(OpenMixture(10, parts), 4, 16, seed=0)
    with pytest.raises(UserError, match=r"no file of the corpus has a whole window"):
        TrainStream(sharded(*[9] * 50), 4, 16, seed=0, sampling="shuffled")


def test_the_evaluation_of_a_mixture_has_equal_parts() -> None:
    parts = (OpenPart("a", 0.9, counting(val=500)), OpenPart("b", 0.1, counting(val=70, min_context=3)))
    evaluation = make_eval_set(OpenMixture(2**16, parts), 8, 96)
    assert [(part.name, part.windows) for part in evaluation.parts] == [("a", 6), ("b", 6)]
    assert (evaluation.batch.y_BT[:, :2] == -1).all(), "as many scored targets in every row"
    assert (evaluation.batch.y_BT[:, 2:] >= 0).all()
    assert evaluation.bytes_per_token is None
