"""Batches and evaluation windows: pure functions of (seed, step), inside documents, scored where context suffices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt.config import UserError
from nanogpt.config.data import Data, ZipfMixture
from nanogpt.config.runtime import Runtime
from nanogpt.data import zipf
from nanogpt.data.opening import OpenCorpus, open_corpus
from nanogpt.data.stream import UNSCORED, TrainStream, make_eval_set


def counting(train: int = 1000, val: int = 500, **changes: Any) -> OpenCorpus:
    """A corpus whose tokens are their own positions."""
    return OpenCorpus(2**16, np.arange(train, dtype=np.uint16), np.arange(val, dtype=np.uint16), **changes)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    corpus = counting()
    forward = [TrainStream(corpus, 4, 8, seed=1).batch(step).x_BT for step in range(5)]
    backward = [TrainStream(corpus, 4, 8, seed=1).batch(step).x_BT for step in reversed(range(5))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not np.array_equal(forward[0], forward[1])
    assert not np.array_equal(forward[0], TrainStream(corpus, 4, 8, seed=2).batch(0).x_BT)


def test_targets_are_the_next_tokens() -> None:
    batch = TrainStream(counting(), 16, 8, seed=3).batch(7)
    assert (batch.y_BT == batch.x_BT + 1).all()
    assert (np.diff(batch.x_BT, axis=1) == 1).all()


def test_every_window_is_drawn_and_none_crosses_a_document() -> None:
    stream = TrainStream(counting(train=100, document=20), 64, 16, seed=0)
    starts = {int(start) for step in range(50) for start in stream.batch(step).x_BT[:, 0]}
    assert starts == {document * 20 + offset for document in range(5) for offset in range(4)}


def test_targets_without_enough_context_are_not_scored() -> None:
    batch = TrainStream(counting(min_context=4), 2, 8, seed=0).batch(0)
    assert (batch.y_BT[:, :3] == UNSCORED).all()
    assert (batch.y_BT[:, 3:] == batch.x_BT[:, 3:] + 1).all()


@pytest.mark.parametrize(("eval_tokens", "windows"), [(None, 62), (80, 10), (8, 1), (3, 1), (10**9, 62)])
def test_evaluation_windows_are_fixed_and_disjoint(eval_tokens: int | None, windows: int) -> None:
    batch = make_eval_set(counting(), 8, eval_tokens).batch
    assert len(batch.x_BT) == windows
    assert len(np.unique(batch.x_BT)) == batch.x_BT.size, "no token is scored twice"
    assert windows == 1 or batch.x_BT[-1, 0] > 400, "spread over the whole split"
    assert np.array_equal(batch.x_BT, make_eval_set(counting(), 8, eval_tokens).batch.x_BT)


def test_the_entropy_is_that_of_the_scored_targets(tmp_path: Path) -> None:
    config = ZipfMixture(alphabet_size=16, train_tokens=4096, val_tokens=8192)
    corpus = open_corpus(Data(corpus=config), Runtime(data_dir=str(tmp_path)))
    evaluation = make_eval_set(corpus, 16, 1024)
    process = zipf.make_process(config)
    expected = []
    for x, y in zip(evaluation.batch.x_BT, evaluation.batch.y_BT, strict=True):
        for t in range(16):
            if y[t] != UNSCORED:
                expected.append(-zipf.log_prob(process, np.append(x[t - 3 : t + 1], y[t]))[0])
    assert evaluation.scored == len(expected) == 64 * 13
    assert evaluation.entropy == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("block_size", "corpus"), [(1000, counting()), (20, counting(document=20)), (3, counting(min_context=4))]
)
def test_a_context_that_does_not_fit_is_an_error(block_size: int, corpus: OpenCorpus) -> None:
    with pytest.raises(UserError, match=f"model.block_size={block_size}: does not fit the corpus"):
        TrainStream(corpus, 2, block_size, seed=0)
