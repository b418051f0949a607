"""Variants in order: by multiplier where there is one, by the gap beyond; undecided where an interval says so."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.compare import compare
from experiments.analysis.parabola import Refusal
from experiments.analysis.ranking import rank_variants, ranking_notes, ranking_table, ranking_text, verdict
from experiments.analysis.student import Interval
from nanogpt.config import UserError

COMPUTE = np.array([1e10, 4e10, 1.6e11, 6.4e11])


def runs(multipliers: dict[str, float], noise: float = 2e-3, spread: float = 0.0, seeds: int = 3) -> pd.DataFrame:
    """Runs of variants on one planted curve, L = 1.9 + 400 (m C)^-0.3; costs off by up to `spread`."""
    draw = np.random.default_rng(0)
    rows = []
    for name, m in multipliers.items():
        for size, planned in enumerate(COMPUTE):
            for seed in range(1, seeds + 1):
                spent = planned * (1 + spread * draw.uniform(-1, 1))
                loss = (1.9 + 400 * (m * spent) ** -0.3) * np.exp(noise * draw.standard_normal())
                rows.append({"id": f"{name}{size}{seed}", "status": "completed", "variant": name, "seed": seed,
                             "flops": spent, "model.n_embd": 16 * 2**size, "val_loss": loss})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_order_is_that_of_the_planted_multipliers_and_equals_share_a_rank() -> None:
    ranking = rank_variants(runs({"plain": 1.0, "good": 3.0, "twin": 1.0, "bad": 0.3}), "variant", "plain")
    assert ranking.ranked[0].variant == "good"
    assert {one.variant for one in ranking.ranked[1:3]} == {"plain", "twin"}
    assert ranking.ranked[3].variant == "bad"
    assert {one.variant: verdict(one.against_baseline) for one in ranking.ranked} == {
        "good": "win", "twin": "undecided", "bad": "loss", "plain": "",
    }  # fmt: skip
    table = ranking_table(ranking).set_index("variant")
    assert table["rank"].tolist() == ["1", "2", "2", "4"]
    assert table.loc["plain", "multiplier"] == "1 (baseline)"
    assert table["against the next"].tolist()[-1] == ""
    assert sum("undecided against" in text for text in table["against the next"]) == 1
    text = ranking_text(ranking)
    assert all(name in text for name in ("good", "twin", "bad"))
    assert "nan" not in text


def test_a_variant_that_shares_no_loss_is_placed_by_the_loss_at_equal_compute() -> None:
    table = runs({"plain": 1.0, "hopeless": 1e-5, "worse": 1e-6})
    ranking = rank_variants(table, "variant", "plain")
    assert [one.variant for one in ranking.ranked] == ["plain", "hopeless", "worse"]
    against = ranking.ranked[1].against_baseline
    assert against is not None
    assert isinstance(against.multiplier, Refusal)
    assert "so it is below 0.016: plain is better at its least than hopeless at its most" in against.multiplier.reason
    assert verdict(against) == "loss"
    assert any(note.startswith("hopeless: no multiplier") for note in ranking_notes(ranking))
    assert ranking_table(ranking)["rank"].tolist() == ["1", "2", "3"]


def test_costs_that_are_drawn_are_compared_at_equal_cost_all_the_same() -> None:
    """No two runs spend alike, so that no level is shared: the baseline is read between its levels."""
    table = runs({"plain": 1.0, "hopeless": 1e-4}, spread=0.1)
    found = compare(table, "variant", "plain", "hopeless")
    assert isinstance(found.gap, Interval)
    inner = table[table["variant"] == "hopeless"]
    truth = np.mean([400 * ((1e-4 * c) ** -0.3 - c**-0.3) for c in inner.groupby("model.n_embd")["flops"].mean()[:-1]])
    assert found.gap.value == pytest.approx(truth, rel=0.1)
    notes = ranking_notes(rank_variants(table, "variant", "plain"))
    assert any("differ by seed alone spent" in note and "hopeless" in note for note in notes)
    assert not any("differ by seed alone spent" in note for note in ranking_notes(
        rank_variants(runs({"plain": 1.0, "good": 2.0}), "variant", "plain")))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        ({}, {"baseline": "plane"}, r"compare.baseline: no finished run has variant = 'plane'; did you mean 'plain'"),
        ({}, {"factor": "varient"}, "varient"),
        ({"variant": "plain"}, {}, "nothing is compared"),
        ({"val_loss": float("nan")}, {}, "val_loss"),
    ],
)
def test_what_cannot_be_ranked_is_told(change: dict[str, Any], options: dict[str, Any], problem: str) -> None:
    table = runs({"plain": 1.0, "good": 2.0}).assign(**change)
    with pytest.raises(UserError, match=problem):
        rank_variants(table, **{"factor": "variant", "baseline": "plain", **options})
