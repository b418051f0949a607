"""How a token is chosen: the exact set that each filter keeps, their order, penalties, draws, greedy choices."""

import math
from typing import Any

import pytest
import torch

from nanogpt.config import UserError
from nanogpt.sampling import (
    Sampling,
    distribution,
    draw,
    heat,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_tokens,
    penalize_repetition,
)

PROBABILITIES = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]])
LOGITS = PROBABILITIES.log()
UNSEEN = torch.zeros(1, 5, dtype=torch.bool)
# The filters are told the logits in another order, and off by a constant, as a model gives them.
ORDER = torch.tensor([3, 0, 4, 2, 1])


def kept(logits: torch.Tensor) -> set[int]:
    return set(torch.isfinite(logits[0]).nonzero().flatten().tolist())


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)] * count


@pytest.mark.parametrize(("k", "count"), [(1, 1), (2, 2), (4, 4), (5, 5), (6, 5), (10**9, 5)])
def test_top_k_keeps_the_k_largest(k: int, count: int) -> None:
    assert kept(keep_top_k(LOGITS, k)) == set(range(count))


def test_top_k_keeps_what_is_tied_with_the_kth() -> None:
    assert kept(keep_top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), 2)) == {1, 2, 3}
    assert kept(keep_top_k(torch.ones(1, 5), 1)) == set(range(5))


@pytest.mark.parametrize("shift", [0.0, 7.0, -30.0])
@pytest.mark.parametrize(
    ("p", "count"),
    [(0.0, 1), (0.1, 1), (0.3, 1), (0.5, 1), (0.51, 2), (0.7, 2), (0.71, 3), (0.85, 3), (0.86, 4), (0.96, 5), (1.0, 5)],
)
def test_top_p_keeps_the_token_that_crosses(p: float, count: int, shift: float) -> None:
    """The shortest prefix of .5 .2 .15 .1 .05 that sums to p or more, never less than one token."""
    assert kept(keep_top_p(LOGITS + shift, p)) == set(range(count))
    shuffled = keep_top_p((LOGITS + shift)[:, ORDER], p)
    assert {int(ORDER[token]) for token in kept(shuffled)} == set(range(count))


def test_top_p_below_the_likeliest_keeps_it_alone_and_p_1_keeps_the_rarest() -> None:
    assert kept(keep_top_p(torch.tensor([[20.0, 0.0, 0.0]]), 0.1)) == {0}
    assert kept(keep_top_p(torch.tensor([[60.0, 0.0, -60.0]]), 1.0)) == {0, 1, 2}


@pytest.mark.parametrize(("min_p", "count"), [(0.0, 5), (0.1, 4), (0.2, 3), (0.3, 3), (0.4, 1), (0.41, 1), (1.0, 1)])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(min_p: float, count: int) -> None:
    """At .1, .2, .3 and .4 a token lies exactly on the edge; float32 decides, as it does in Hugging Face's code."""
    assert kept(keep_min_p(LOGITS, min_p)) == set(range(count))


def test_a_repeated_token_is_penalized_once_and_towards_less() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 0.0, 3.0]]), torch.tensor([[True, True, True, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 3.0]]
    assert penalize_repetition(logits, seen, 0.5).tolist() == [[4.0, -1.0, 0.0, 3.0]]
    assert torch.equal(penalize_repetition(logits, seen, 1.0), logits)


def test_temperature_divides_and_the_smallest_is_finite() -> None:
    for temperature in (0.25, 1.0, 3.0):
        expected = (LOGITS / temperature).softmax(-1)
        torch.testing.assert_close(heat(LOGITS, temperature).softmax(-1), expected)
    for temperature in (1e-45, 5e-324):
        assert heat(torch.tensor([[1.0, 2.0, 2.0]]), temperature).softmax(-1).tolist() == [[0.0, 0.5, 0.5]]
    assert heat(LOGITS, 1e300).softmax(-1)[0].tolist() == pytest.approx([0.2] * 5)


def kept_by(how: Sampling, seen: torch.Tensor = UNSEEN) -> list[float]:
    return [round(each, 4) for each in distribution(LOGITS, seen, how)[0].tolist()]


def test_the_order_is_penalty_temperature_top_k_top_p_min_p() -> None:
    """Each of these would give another distribution in another order."""
    first_seen = torch.tensor([[True, False, False, False, False]])
    # The penalty sees the sign of the raw logit: log .5 doubles to log .25, and then the temperature doubles them all.
    expected = [0.25**2, 0.2**2, 0.15**2, 0.1**2, 0.05**2]
    total = sum(expected)
    found = kept_by(Sampling(temperature=0.5, repetition_penalty=2.0), first_seen)
    assert found == pytest.approx([each / total for each in expected], abs=1e-4)
    # Temperature before top-p: squared, the first two of .25 .04 .0225 .01 .0025 reach 0.85 of their sum.
    assert kept_by(Sampling(temperature=0.5, top_p=0.85))[2:] == [0, 0, 0]
    assert kept_by(Sampling(top_p=0.85))[2] > 0
    # Top-k before top-p: of the two that are left the first alone has 0.714.
    assert kept_by(Sampling(top_k=2, top_p=0.7)) == [1, 0, 0, 0, 0]
    assert kept_by(Sampling(top_p=0.7)) == pytest.approx([0.7143, 0.2857, 0, 0, 0])
    # Top-p before min-p: 0.5 alone is below 0.58. Of the three that min-p leaves, the first alone would have 0.588.
    assert kept_by(Sampling(top_p=0.58, min_p=0.25)) == pytest.approx([0.7143, 0.2857, 0, 0, 0])


def test_settings_that_are_off_change_nothing() -> None:
    off = Sampling(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    assert torch.equal(distribution(LOGITS, UNSEEN, off), distribution(LOGITS, UNSEEN, Sampling()))
    torch.testing.assert_close(distribution(LOGITS, UNSEEN, off), PROBABILITIES)


def test_draws_follow_the_distribution_and_never_take_what_is_removed() -> None:
    cells = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(10_000, -1)
    counts = draw(probabilities, cells).bincount(minlength=5)
    assert counts.tolist() == pytest.approx([0, 3000, 0, 7000, 0], abs=1)
    assert counts[[0, 2, 4]].sum() == 0
    highest = torch.tensor([math.nextafter(1, 0)], dtype=torch.float64)
    for row in (probabilities[:1], torch.full((1, 3), 1 / 3), torch.eye(1, 7)):
        assert row[0, draw(row, highest)[0]] > 0


def test_rows_are_chosen_each_for_itself() -> None:
    """Every row has its own filters' thresholds and its own stream: it is what it is alone."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    seen = torch.rand(6, 50, generator=torch.Generator().manual_seed(2)) < 0.2
    how = Sampling(temperature=0.9, top_k=20, top_p=0.8, min_p=0.02, repetition_penalty=1.3)

    def streams() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(6)]

    together = next_tokens(logits, seen, how, streams())
    for row, stream in enumerate(streams()):
        alone = next_tokens(logits[row : row + 1], seen[row : row + 1], how, [stream])
        assert alone.tolist() == [together[row]]
        expected = distribution(logits[row : row + 1], seen[row : row + 1], how)
        torch.testing.assert_close(distribution(logits, seen, how)[row : row + 1], expected)


@pytest.mark.parametrize("greedy", [{"temperature": 0.0}, {"do_sample": False}])
def test_greedy_takes_the_likeliest_raw_logit_whatever_the_filters(greedy: dict[str, Any]) -> None:
    how = Sampling(**{"temperature": 3.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "repetition_penalty": 9.0} | greedy)
    logits = torch.tensor([[1.0, 5.0, 4.0], [7.0, 5.0, 7.0]])
    seen = torch.tensor([[False, True, False], [True, False, False]])
    assert next_tokens(logits, seen, how, generators(2)).tolist() == [1, 0]


def test_a_low_temperature_is_not_greedy_between_equals() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0]]).expand(400, -1)
    seen = torch.zeros(400, 3, dtype=torch.bool)
    drawn = next_tokens(logits, seen, Sampling(temperature=1e-6), generators(400)).bincount(minlength=3)
    assert drawn[2] == 0
    assert min(drawn[:2].tolist()) > 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected 0 or more, got -0.1"),
        ({"temperature": math.nan}, "temperature: expected 0 or more, got nan"),
        ({"temperature": math.inf}, "temperature: expected 0 or more, got inf"),
        ({"top_k": -1}, "top_k: expected at least 1, or 0 for off, got -1"),
        ({"top_p": 1.01}, "top_p: expected a number from 0 to 1, got 1.01"),
        ({"top_p": math.nan}, "top_p: expected"),
        ({"min_p": -0.1}, "min_p: expected"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected more than 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty: expected more than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"sample: {message}"):
        Sampling(**change)
