"""Held-out prediction: the three cuts, what is compared, and refusals."""

import pytest

from experiments.analysis.holdout import holdout
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs, with_diverged


@pytest.mark.parametrize(("cut", "held"), [({"fraction": 0.2}, 7), ({"largest": 4}, 4), ({"below": 1e12}, 3)])
def test_each_cut_holds_out_the_largest_runs(cut: dict, held: int) -> None:
    runs = planted_runs(noise=0.001)
    result = holdout("chinchilla", runs, by="flops", bootstrap=50, **cut)
    assert len(result.table) == held
    assert len(result.fit.points) == 35 - held
    assert result.fit.points["flops"].max() < result.table["flops"].min()
    assert set(result.table["id"]) == set(runs.nlargest(held, "flops")["id"])
    assert result.max_error < 0.02
    assert 0 < result.mean_error <= result.max_error
    assert result.reach > 1


def test_error_is_signed_and_relative_to_the_measurement() -> None:
    row = holdout("chinchilla", planted_runs(), largest=1, bootstrap=0).table.iloc[0]
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)


def test_seeds_of_one_point_are_never_split() -> None:
    result = holdout("chinchilla", planted_runs(seeds=3), fraction=0.02, bootstrap=0)
    assert len(result.table) == 3


def test_diverged_and_filtered_runs_are_neither_fitted_nor_predicted() -> None:
    runs = with_diverged(planted_runs(), 34)
    result = holdout("chinchilla", runs, largest=2, where="n_embd != 48", bootstrap=0)
    seen = {*result.table["id"], *result.fit.points["id"]}
    assert runs["id"][34] not in seen
    assert not seen & set(runs.loc[runs["model.n_embd"] == 48, "id"])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({}, "exactly one of"),
        ({"below": 1e9, "largest": 2}, "exactly one of"),
        ({"below": 1e30}, "no finished run has flops >= 1e\\+30"),
        ({"below": 1.0}, "needs at least 6 points"),
        ({"largest": 35}, "largest must lie in 1 .. 34"),
        ({"fraction": 1.5}, "between 0 and 1"),
        ({"largest": 1, "by": "flop"}, "did you mean 'flops'"),
    ],
)
def test_refusals(cut: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        holdout("chinchilla", planted_runs(), bootstrap=0, **cut)
