"""The prefetch thread: the same batches in the same order, errors where they are needed, and a clean end."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from nanogpt.data.prefetch import Prefetcher
from nanogpt.data.stream import Batch, TrainStream
from tests.data.test_stream import counting


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_the_same_batches_in_the_same_order() -> None:
    stream = TrainStream(counting(), 4, 8, seed=1)
    for first, last in ((0, 40), (100_000, 100_040)):
        with Prefetcher(stream.batch, first, last) as batches:
            for step in range(first, last):
                assert np.array_equal(batches.batch(step).x_BT, stream.batch(step).x_BT)
    assert not threads()


def test_it_works_ahead_and_no_further() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return Batch(np.full((1, 1), step), np.zeros((1, 1), dtype=np.int64))

    with Prefetcher(make, 0, 10, ahead=2) as batches:
        _until(lambda: made == [0, 1])
        assert batches.batch(0).x_BT[0, 0] == 0
        _until(lambda: made == [0, 1, 2])
        time.sleep(0.01)
        assert made == [0, 1, 2]
    made.clear()
    with Prefetcher(make, 0, 20, ahead=4) as batches:
        _until(lambda: len(made) == 4)
        batches.batch(0)
        time.sleep(0.01)
        assert len(made) == 4  # it sleeps until half are taken
        batches.batch(1)
        _until(lambda: len(made) == 6)
    with Prefetcher(make, 0, 1) as batches:
        batches.batch(0)
    assert not threads()


def test_an_error_comes_with_the_batch_that_it_spoils() -> None:
    def make(step: int) -> Batch:
        if step == 3:
            raise OSError("the disk is gone")
        return Batch(np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.int64))

    with Prefetcher(make, 0, 10) as batches:
        for step in range(3):
            batches.batch(step)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                batches.batch(3)
    assert not threads()


def test_it_ends_with_its_block_whatever_happens() -> None:
    with pytest.raises(ZeroDivisionError), Prefetcher(TrainStream(counting(), 4, 8, 1).batch, 0, 10**9):
        raise ZeroDivisionError
    assert not threads()


def _until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    assert holds()
