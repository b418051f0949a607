"""HellaSwag: winners computed by hand, batches of any size, work shared by several ranks, and mistakes in files."""

import dataclasses
import functools
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.data.binfiles import file_sha256
from nanogpt.evaluation import hellaswag_file
from nanogpt.evaluation.hellaswag import TEXTS, Item, judge, without_brackets
from nanogpt.evaluation.hellaswag_file import items_file, read_items
from nanogpt.evaluation.multiple_choice import Answers, Question, answer_all, cut_endings, make_questions, plan
from nanogpt.evaluation.rows import Pair, Row, rows_of
from nanogpt.evaluation.scoring import LOG_PROB, Scorer, padded
from nanogpt.model import GPT
from nanogpt.team import Team
from nanogpt.train import autocast_for
from tests.evaluation.circle import LN2, Circle, babbler, speaker

ITEMS = Path(__file__).with_name("items.jsonl")
BY_HAND = [json.loads(line)["by_hand"] for line in ITEMS.read_text(encoding="utf-8").splitlines()]
CPU = torch.device("cpu")
Found = TypeVar("Found")


def scorer(model: GPT, team: Team | None = None) -> Scorer:
    return Scorer(model, autocast_for("fp32", CPU), team or Team())


def questions(block_size: int = 128) -> list[Question]:
    return make_questions(read_items(ITEMS), Circle().encode, tuple(TEXTS), block_size)


def log_probs(answers: Answers) -> Tensor:
    return torch.tensor([[each.log_probs for each in one.values()] for one in answers.verdicts], dtype=torch.float64)


def test_the_winners_are_those_computed_by_hand() -> None:
    """The bits of every ending, under both texts, and the ending that each measure chooses, are in items.jsonl."""
    asked = questions()
    answers = answer_all(scorer(speaker()), asked)
    for question, verdicts, by_hand in zip(asked, answers.verdicts, BY_HAND, strict=True):
        theirs, plain = verdicts["lm-eval"], verdicts["build-nanogpt"]
        assert [-value / LN2 for value in theirs.log_probs] == pytest.approx(by_hand["bits"], abs=1e-3)
        assert [-value / LN2 for value in plain.log_probs] == pytest.approx(by_hand["bits_of_ctx"], abs=1e-3)
        assert list(question.choices["lm-eval"].characters) == by_hand["characters"]
        assert [len(pair.continuation) for pair in question.choices["build-nanogpt"].pairs] == by_hand["tokens"]
        assert theirs.chosen["acc"] == by_hand["acc"]
        assert theirs.chosen["acc_norm"] == by_hand["acc_norm"]
        assert plain.chosen["acc_norm_tokens"] == by_hand["acc_norm_tokens"]
    assert answers.tally.figures() == pytest.approx(
        {
            "acc": 8 / 20,
            "acc_stderr": math.sqrt(0.4 * 0.6 / 19),
            "acc_norm": 12 / 20,
            "acc_norm_stderr": math.sqrt(0.6 * 0.4 / 19),
            "acc_norm_tokens": 10 / 20,
            "acc_norm_tokens_stderr": math.sqrt(0.5 * 0.5 / 19),
        }
    )
    assert answers.tally.by_text()["build-nanogpt"]["acc"] == 8 / 20


def test_batches_of_any_size_score_alike() -> None:
    """One row at a time needs no padding: what fills up the others changes nothing."""
    model, asked = babbler(), questions()
    single = log_probs(answer_all(scorer(model), asked, batch_size=1))
    assert single.std() > 5, "the model tells endings apart"
    for batch_size in (3, 17, None):
        torch.testing.assert_close(log_probs(answer_all(scorer(model), asked, batch_size)), single, rtol=1e-5, atol=0)


def test_padding_is_never_seen() -> None:
    rows = [Row((1, 2, 3), 1), Row((4, 5, 6, 7, 8, 9), 3), Row((1, 0), 1)]
    batch = padded(rows)
    assert batch.y_BT.tolist() == [[-1, 3, -1, -1, -1], [-1, -1, 7, 8, 9], [0, -1, -1, -1, -1]]
    other = dataclasses.replace(batch, x_BT=batch.x_BT.copy())
    other.x_BT[0, 2:] = other.x_BT[2, 1:] = 40
    found, again = (scorer(babbler()).sums(each) for each in (batch, other))
    assert torch.equal(found, again)
    alone = torch.cat([scorer(babbler()).sums(padded([row])) for row in rows])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=0)


class Threads:
    """Ranks in threads of this process: `add` sums over them as a collective does."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=20)
        self.parts: dict[int, Tensor] = {}

    def team(self, rank: int) -> Team:
        @dataclasses.dataclass(frozen=True)
        class Rank(Team):
            def add(team, tensor: Tensor) -> Tensor:
                self.parts[rank] = tensor.clone()
                self.barrier.wait()
                tensor.copy_(functools.reduce(torch.add, (self.parts[each] for each in range(self.size))))
                self.barrier.wait()
                return tensor

        return Rank(rank, self.size)


def in_threads(size: int, work: Callable[[int], Found]) -> list[Found]:
    """What each rank finds."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_several_ranks_score_what_one_scores_each_item_once(size: int) -> None:
    """To the last bit: what shares a batch does not depend on the ranks, and every row goes through one of them."""
    model, asked = babbler(), questions()
    alone = answer_all(scorer(model), asked, batch_size=24)
    ranks, scored = Threads(size), dict[int, int]()

    def work(rank: int) -> Answers:
        class Counting(Scorer):
            def sums(self, batch: Any) -> Tensor:
                scored[rank] = scored.get(rank, 0) + len(batch.x_BT)
                return super().sums(batch)

        return answer_all(Counting(model, autocast_for("fp32", CPU), ranks.team(rank)), asked, batch_size=24)

    assert in_threads(size, work) == [alone] * size
    assert alone.tally.items == 20
    assert sum(scored.values()) == 20 * 8
    assert min(scored.values()) >= 24


def test_a_batch_holds_items_of_about_one_length_and_each_item_is_in_one() -> None:
    asked = questions()
    batches = plan(asked, at_once=24)
    assert sorted(number for batch in batches for number in batch) == list(range(20))
    assert {len(batch) for batch in batches} == {2, 3}
    lengths = [max(len(row.tokens) for number in batch for row in asked[number].rows) for batch in batches]
    assert lengths == sorted(lengths, reverse=True)


def test_what_does_not_fit_the_context_is_cut_from_its_beginning_or_scored_in_pieces() -> None:
    pair = Pair(tuple(range(10)), (10, 11, 12))
    assert rows_of(pair, 12) == [Row(tuple(range(13)), 3)]
    assert rows_of(pair, 4) == [Row((8, 9, 10, 11, 12), 3)]
    assert rows_of(pair, 3) == [Row((9, 10, 11, 12), 3)]
    assert rows_of(pair, 2) == [Row((9, 10, 11), 2), Row((10, 11, 12), 1)]
    asked = questions(block_size=16)
    assert cut_endings(asked, 16) > 0
    assert cut_endings(asked, 128) == 0
    in_pieces = log_probs(answer_all(scorer(speaker(8)), questions(8)))  # which looks one token back
    torch.testing.assert_close(in_pieces, log_probs(answer_all(scorer(speaker()), questions())), rtol=1e-4, atol=0)


def test_the_text_of_lm_eval_has_no_brackets() -> None:
    assert without_brackets(" How to fold [title] Take it.  Fold [step] it. ") == "How to fold. Take it. Fold it."
    item = read_items(ITEMS)[9]
    query = TEXTS["lm-eval"](item, Circle().encode).pairs[2]
    text = Circle().decode([*query.context, *query.continuation])
    assert text == "Sewing: cloth is cut.. Fold it.  ab."
    plain = TEXTS["build-nanogpt"](item, Circle().encode).pairs[2]
    assert Circle().decode(plain.continuation) == " [substeps] ab."


def test_an_ending_of_brackets_alone_is_scored_as_its_space() -> None:
    """lm-evaluation-harness drops no item for it; per character, of which it has none, it is never the choice."""
    fields = {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "ctx": "b c"}
    item = Item("f:1", 0, ("[step]", "ab", ""), fields)
    theirs, plain = (TEXTS[name](item, Circle().encode) for name in ("lm-eval", "build-nanogpt"))
    assert [Circle().decode(pair.continuation) for pair in theirs.pairs] == [" ", " ab", " "]
    assert [Circle().decode(pair.continuation) for pair in plain.pairs] == [" [step]", " ab", " "]
    assert theirs.characters == (0, 2, 0)
    assert judge(theirs, (-1.0, -30.0, -2.0)).chosen == {"acc": 0, "acc_norm": 1, "acc_norm_tokens": 0}


def test_diverged_weights_are_said_to_be() -> None:
    model = babbler()
    with torch.no_grad():
        model.embedding.weight[3] = math.nan
    with pytest.raises(UserError, match="not finite"):
        answer_all(scorer(model), questions())


LINE = {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "ctx": "b c", "endings": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"f.jsonl:2: not JSON"),
        ("[]", r"f.jsonl:2: expected an object with 'endings' and 'label', got \[\]"),
        ({"endings": ["a"]}, "'endings': expected a list of 2 texts or more"),
        ({"endings": "abcd"}, "'endings': expected a list"),
        ({"label": 2}, "'label': expected a number from 0 to 1, got 2"),
        ({"label": True}, "'label': expected a number from 0 to 1, got True"),
        ({"label": ""}, "'label' is empty, as in HellaSwag's test split"),
        ({"label": None}, "'label': expected a number from 0 to 1, got nothing"),
        ({"ctx": None}, "no 'ctx', which the text of build-nanogpt needs; see --text lm-eval"),
        ({"ctx_b": 3}, "expected a text, got 3 for 'ctx_b', which the text of lm-eval needs; see --text build-nanogpt"),
        ({"ctx": ""}, "'ctx' is empty"),
    ],
)
def test_mistakes_in_a_file_are_named_by_line(tmp_path: Path, change: Any, message: str) -> None:
    file = tmp_path / "f.jsonl"
    line = change if isinstance(change, str) else json.dumps(LINE | change)
    file.write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        make_questions(read_items(file), Circle().encode, tuple(TEXTS), 64)
    assert len(read_items(file, limit=1)) == 1


def test_an_empty_or_missing_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no items in it"):
        read_items(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match=r"no such file; did you mean 'empty.jsonl'"):
        items_file(tmp_path / "emty.jsonl", tmp_path)


def test_the_validation_split_is_downloaded_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def answer(url: str, timeout: float) -> Any:
        fetched.append(url)
        return ITEMS.open("rb")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(UserError, match="is not the published file"):
        items_file(None, tmp_path)
    assert not (tmp_path / "hellaswag" / hellaswag_file.NAME).exists()
    monkeypatch.setattr(hellaswag_file, "SHA256", file_sha256(ITEMS))
    assert len(read_items(items_file(None, tmp_path))) == 20
    items_file(None, tmp_path)
    assert len(fetched) == 2


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(UserError, match=r"Name or service not known.*--data FILE"):
        items_file(None, tmp_path)


def test_build_nanogpts_measure_is_its_own_arithmetic() -> None:
    """Against the way of build-nanogpt, written out: mean cross-entropy over the masked positions of padded rows."""
    model, asked = babbler(), questions()
    answers = answer_all(scorer(model), asked)
    circle = Circle()
    for item, verdicts in zip(read_items(ITEMS), answers.verdicts, strict=True):
        context = circle.encode(item.fields["ctx"])
        endings = [circle.encode(" " + ending) for ending in item.endings]
        width = max(len(context) + len(ending) for ending in endings)
        tokens, mask = torch.zeros(len(endings), width, dtype=torch.long), torch.zeros(len(endings), width)
        for row, ending in enumerate(endings):
            tokens[row, : len(context) + len(ending)] = torch.tensor(context + ending)
            mask[row, len(context) : len(context) + len(ending)] = 1
        logits = model(tokens).detach()
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        losses = losses.view(len(endings), -1) * mask[:, 1:]
        found = verdicts["build-nanogpt"]
        assert found.chosen["acc"] == losses.sum(1).argmin()
        assert found.chosen["acc_norm_tokens"] == (losses.sum(1) / mask[:, 1:].sum(1)).argmin()
        assert found.log_probs == pytest.approx((-losses.sum(1)).tolist(), rel=1e-5)


def test_the_columns_are_sums_over_scored_targets() -> None:
    found = scorer(speaker()).sums(padded([Row((0, 1, 2, 3), 2), Row((5, 5), 1)]))
    assert (-found[:, LOG_PROB] / LN2).tolist() == pytest.approx([4.0, 1.0], abs=1e-4)
    assert found[:, 1:].tolist() == [[0.0, 2.0], [1.0, 1.0]]  # after a token, the same again is likeliest
