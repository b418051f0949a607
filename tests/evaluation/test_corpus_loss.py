"""The loss on any corpus: every token once, whatever the windows; bits per byte by hand; other tokenizers refused."""

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from nanogpt.config import UserError
from nanogpt.data.alphabets import Bytes, Characters
from nanogpt.data.opening import OpenCorpus
from nanogpt.data.stream import UNSCORED, make_eval_set
from nanogpt.data.tokenizers import write_tokenizer
from nanogpt.data.tokensizes import sizes_of
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.evaluate import evaluate
from nanogpt.evaluation import running
from nanogpt.evaluation.corpus_loss import Stretch, cut, score_corpus
from nanogpt.evaluation.tokenizing import check_same, vocabulary_of_folder
from nanogpt.train import autocast_for
from tests.evaluation.circle import LN2, Circle, V, babbler, bits, speaker
from tests.evaluation.test_hellaswag import CPU, Threads, in_threads, scorer

TEXT = "the cat is thin. the inglé [hat] is his. " * 9


def stretch(text: str = TEXT) -> Stretch:
    circle = Circle()
    return Stretch(np.array(circle.encode(text)), sizes_of(circle, V))


def test_a_loss_and_its_bits_per_byte_are_those_computed_by_hand() -> None:
    """The speaker looks one token back, so windows do not matter: every token but the first costs what it costs."""
    ids = Circle().encode(TEXT)
    nats = LN2 * sum(bits(before, token) for before, token in itertools.pairwise(ids))
    size = len(TEXT.encode()) - len("th")  # the first token is only seen
    for block_size, stride in ((16, None), (16, 3), (7, 1), (len(ids) - 1, None), (400, 9)):
        found = score_corpus(scorer(speaker(block_size)), stretch(), stride)
        assert found.tokens == len(ids) - 1
        assert found.bytes == size
        assert found.loss * found.tokens == pytest.approx(nats, rel=1e-5)
        assert found.bits_per_byte == pytest.approx(nats / LN2 / size, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(nats / found.tokens), rel=1e-4)


@pytest.mark.parametrize(
    ("length", "block_size", "stride", "document", "min_context"),
    [(50, 8, 8, None, 1), (50, 8, 3, None, 1), (2, 8, 8, None, 1), (9, 8, 1, None, 1), (48, 8, 8, 12, 3),
     (48, 8, 5, 12, 3)],
)  # fmt: skip
def test_every_target_is_scored_once_from_as_much_as_the_stride_leaves(
    length: int, block_size: int, stride: int, document: int | None, min_context: int
) -> None:
    """Against the definition, target by target. Within a document the n-th token has n before it."""
    tokens = np.arange(length) + 100
    windows = cut(Stretch(tokens, None, document, min_context), block_size, stride)
    seen: dict[int, int] = {}
    for number in range(windows.total):
        batch = windows.rows(tokens, np.array([number]))
        for place, target in enumerate(batch.y_BT[0]):
            if target != UNSCORED:
                assert target - 100 not in seen
                assert batch.x_BT[0, place] == target - 1
                seen[int(target) - 100] = place + 1
    size = document or length
    expected = {}
    for target in range(length):
        within = target % size
        context = min(within, block_size - stride + (within - 1) % stride + 1) if within else 0
        if context >= min_context:
            expected[target] = context
    assert seen == expected


def test_without_overlap_it_is_trainings_own_evaluation() -> None:
    model, ids = babbler(16), np.array(Circle().encode(TEXT))
    ids = ids[: (len(ids) - 1) // 16 * 16 + 1].astype(np.uint16)
    eval_set = make_eval_set(OpenCorpus(V, ids, ids), 16, None)
    own = evaluate(model, eval_set, CPU, autocast_for("fp32", CPU))
    found = score_corpus(scorer(model), Stretch(ids, None))
    assert found.loss == pytest.approx(own.loss, rel=1e-6)
    assert found.stderr == pytest.approx(own.stderr, rel=1e-5)
    assert found.windows == len(eval_set.batch.x_BT)
    assert found.bits_per_byte is None


def test_part_of_a_corpus_is_evenly_spread_and_batches_do_not_matter() -> None:
    model = babbler(16)
    whole = score_corpus(scorer(model), stretch(), batch_size=1)
    assert score_corpus(scorer(model), stretch(), batch_size=5).loss == pytest.approx(whole.loss, rel=1e-6)
    part = score_corpus(scorer(model), stretch(), limit=5)
    assert (part.windows, part.of_windows, part.tokens) == (5, whole.windows, 5 * 16)
    assert cut(stretch(), 16, None).spread(5).tolist() == [n * whole.windows // 5 for n in range(5)]
    assert score_corpus(scorer(model), stretch(), limit=10**6, batch_size=1) == whole


def test_the_stride_decides_how_much_a_model_sees() -> None:
    few, more = (score_corpus(scorer(babbler(16)), stretch(), stride) for stride in (16, 1))
    assert (few.mean_context, more.mean_context) == (8.5, 16.0)
    assert few.tokens == more.tokens
    assert few.loss != more.loss


def test_bad_strides_and_short_texts_are_refused() -> None:
    with pytest.raises(UserError, match="--stride 17: expected 1 to 16"):
        score_corpus(scorer(speaker(16)), stretch(), 17)
    with pytest.raises(UserError, match="1 tokens are too few to score"):
        score_corpus(scorer(speaker(16)), stretch("a"))


def test_the_sizes_of_tokens_are_those_of_their_text() -> None:
    sizes = sizes_of(Circle(), V + 4)
    assert [sizes[Circle().encode(text)[0]] for text in ("a", "é", "th", "ing")] == [1, 2, 2, 3]
    assert sizes[V:].tolist() == [0] * 4
    assert sizes_of(Bytes(), 256)[Bytes.eot] == 0


def test_other_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    numbers, letters = Vocabulary(32), Vocabulary(3, Characters("abc"))
    byte = Vocabulary(256, Bytes())
    check_same(byte, byte, "x")
    check_same(numbers, Vocabulary(16), "x")
    with pytest.raises(UserError, match=r"x: written in the tokenizer char, the model reads byte"):
        check_same(byte, letters, "x")
    with pytest.raises(UserError, match=r"char \(3 others than the model's\), the model reads char"):
        check_same(Vocabulary(3, Characters("abd")), letters, "x")
    with pytest.raises(UserError, match="reads 32 ids that stand for no text, this corpus holds the tokenizer byte"):
        check_same(numbers, byte, "x")
    with pytest.raises(UserError, match="the model reads 32 ids that stand for no text, this corpus holds 33 ids"):
        check_same(numbers, Vocabulary(33), "x")
    write_tokenizer(Bytes(), tmp_path)
    found = vocabulary_of_folder(tmp_path).tokenizer
    assert found is not None
    assert found.fingerprint == Bytes().fingerprint


def test_ranks_share_a_corpus_to_the_last_bit() -> None:
    model, ranks = babbler(16), Threads(2)
    alone = score_corpus(scorer(model), stretch(), batch_size=3)
    found = in_threads(2, lambda rank: score_corpus(scorer(model, ranks.team(rank)), stretch(), batch_size=3))
    assert found == [alone, alone]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_figure_so_far_is_one_line_on_a_terminal_and_now_and_then_one_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    for stream, seconds in ((Screen(), 1.0), (io.StringIO(), 20.0)):
        shown = running.Running(stream=stream)
        assert not shown.is_due()
        now += seconds
        assert shown.is_due()
        shown.say(5, 20, "items", "acc 0.4000")
        assert not shown.is_due()
        shown.end()
        line = f"5 of 20 items  acc 0.4000  {3 * seconds:.0f} s left"
        blank = "\r" + " " * len(line) + "\r"
        assert stream.getvalue() == (f"\r{line}{blank}" if stream.isatty() else f"{line}\n")
    now += 100
    assert not running.Running(speaks=False).is_due()
