"""Scores questions of several endings by a model: every item once, however many processes share them.

What is scored together follows from the items and the batch size alone, so that any number of processes adds up the
same numbers to the last bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.evaluation.hellaswag import CUSTOMARY, MEASURES, TEXTS, Choices, Encode, Item, Verdict, judge
from nanogpt.evaluation.rows import Row, is_cut, longest, rows_of
from nanogpt.evaluation.running import Running
from nanogpt.evaluation.scoring import LOG_PROB, SCORED, Scorer, check_finite, score_rows, take_turns

COLUMNS = 3
POOL = 512  # items whose lengths are compared, so that those of about one length share a batch
ORDER_KEY = 0x48656C6C61537761  # any constant: the order is a fixed draw, so that the figure so far is a fair sample


@dataclass(frozen=True)
class Question:
    """An item as each text has it, with the rows of all endings in their order."""

    item: Item
    choices: Mapping[str, Choices]
    rows: tuple[Row, ...]
    pieces: tuple[int, ...]  # rows of each ending, over all texts


@dataclass
class Tally:
    """Right answers so far, by text and measure."""

    items: int = 0
    right: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, label: int, verdicts: Mapping[str, Verdict]) -> None:
        """Count one item."""
        self.items += 1
        for text, verdict in verdicts.items():
            for measure, choice in verdict.chosen.items():
                self.right[text, measure] = self.right.get((text, measure), 0) + (choice == label)

    def share(self, text: str, measure: str) -> float:
        """The share of right answers."""
        return self.right[text, measure] / self.items

    def stderr(self, text: str, measure: str) -> float | None:
        """Its standard error, sqrt(p (1 - p) / (n - 1)): the sample's deviation over sqrt(n); None of one item."""
        share = self.share(text, measure)
        return math.sqrt(share * (1 - share) / (self.items - 1)) if self.items > 1 else None

    def figures(self) -> dict[str, float | None]:
        """Each customary measure whose text was scored, with its standard error, under their names."""
        found: dict[str, float | None] = {}
        for measure, text in CUSTOMARY.items():
            if (text, measure) in self.right:
                found |= {measure: self.share(text, measure), f"{measure}_stderr": self.stderr(text, measure)}
        return found

    def by_text(self) -> dict[str, dict[str, float]]:
        """Every measure on every text that was scored."""
        texts = dict.fromkeys(text for text, _ in self.right)
        return {text: {measure: self.share(text, measure) for measure in MEASURES} for text in texts}

    def __str__(self) -> str:
        found = self.figures()
        return "  ".join(f"{measure} {_with_error(found, measure)}" for measure in CUSTOMARY if measure in found)


def _with_error(figures: Mapping[str, float | None], measure: str) -> str:
    error = figures[f"{measure}_stderr"]
    return f"{figures[measure]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def make_questions(items: Sequence[Item], encode: Encode, texts: Sequence[str], block_size: int) -> list[Question]:
    """The items in token ids. Raises UserError naming the item that the tokenizer cannot write."""
    return [_question(item, encode, texts, block_size) for item in items]


def _question(item: Item, encode: Encode, texts: Sequence[str], block_size: int) -> Question:
    def named(text: str) -> Sequence[int]:
        try:
            return encode(text)
        except UserError as error:
            raise UserError(f"{item.place}: the model's tokenizer cannot write this item: {error}") from None

    choices = {name: TEXTS[name](item, named) for name in texts}
    endings = [rows_of(pair, block_size) for each in choices.values() for pair in each.pairs]
    rows = tuple(row for ending in endings for row in ending)
    return Question(item, choices, rows, tuple(map(len, endings)))


def cut_endings(questions: Sequence[Question], block_size: int) -> int:
    """How many endings lost the beginning of their context, or were scored in pieces."""
    pairs = (pair for question in questions for each in question.choices.values() for pair in each.pairs)
    return sum(is_cut(pair, block_size) for pair in pairs)


def plan(questions: Sequence[Question], at_once: int) -> list[list[int]]:
    """The questions' numbers by batch, at most `at_once` rows in each where an item has no more; each number once."""
    order = np.random.Generator(np.random.Philox(key=ORDER_KEY)).permutation(len(questions)).tolist()
    batches: list[list[int]] = []
    for first in range(0, len(order), POOL):
        rows = 0
        pool = sorted(order[first : first + POOL], key=lambda number: -longest(questions[number].rows))
        for place, number in enumerate(pool):
            rows += len(questions[number].rows)
            if place == 0 or rows > at_once:
                batches.append([])
                rows = len(questions[number].rows)
            batches[-1].append(number)
    return batches


def answer(
    scorer: Scorer, questions: Sequence[Question], batch_size: int | None = None
) -> Iterator[tuple[int, dict[str, Verdict]]]:
    """Each question's number and what is chosen under each text, as they are scored; all ranks get all of them."""
    widest = max(longest(question.rows) for question in questions)
    at_once = scorer.rows_at_once(widest, batch_size)
    batches = plan(questions, at_once)
    rows = [[row for number in batch for row in questions[number].rows] for batch in batches]
    turns = take_turns(
        list(map(len, rows)), lambda batch: score_rows(scorer, rows[batch], at_once), COLUMNS, scorer.team
    )
    for batch, sums in turns:
        check_finite(sums)
        assert sums[:, SCORED].tolist() == [row.scored for row in rows[batch]], "every row is scored by one rank, once"
        sizes = [len(questions[number].rows) for number in batches[batch]]
        for number, part in zip(batches[batch], sums.split(sizes), strict=True):
            yield number, _verdicts(questions[number], part)


def _verdicts(question: Question, sums: Tensor) -> dict[str, Verdict]:
    log_probs = [float(part[:, LOG_PROB].sum()) for part in sums.split(list(question.pieces))]
    endings = len(question.item.endings)
    starts = range(0, len(log_probs), endings)
    parts = zip(question.choices.items(), starts, strict=True)
    return {text: judge(choices, log_probs[start : start + endings]) for (text, choices), start in parts}


@dataclass(frozen=True)
class Answers:
    """All verdicts in the items' order, and their tally."""

    verdicts: tuple[dict[str, Verdict], ...]
    tally: Tally


def answer_all(
    scorer: Scorer,
    questions: Sequence[Question],
    batch_size: int | None = None,
    running: Running | None = None,
) -> Answers:
    """Score every question; `running` shows the figure so far."""
    tally, verdicts = Tally(), dict[int, dict[str, Verdict]]()
    for number, found in answer(scorer, questions, batch_size):
        assert number not in verdicts, "each item once"
        verdicts[number] = found
        tally.add(questions[number].item.label, found)
        if running is not None and running.is_due():
            running.say(tally.items, len(questions), "items", str(tally))
    if running is not None:
        running.end()
    assert len(verdicts) == len(questions), "each item"
    return Answers(tuple(verdicts[number] for number in range(len(questions))), tally)
