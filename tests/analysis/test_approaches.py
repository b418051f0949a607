"""The approaches side by side: every accounting, agreement on a planted surface, refusals, words and figures."""

import numpy as np
import pytest

from experiments.analysis import approach_plots
from experiments.analysis.approach_words import approach_claims, approach_notes, approach_table, approach_text
from experiments.analysis.approaches import Approaches, compare_approaches
from experiments.analysis.fit import fit
from experiments.analysis.frontier import compute_optimal, optimal_on
from experiments.analysis.laws import Chinchilla
from experiments.analysis.observations import Accounting, observe
from nanogpt.config import UserError
from tests.analysis.planted import CHINCHILLA, SYMMETRIC, ladder_of, optimum, slices_of
from tests.analysis.tables import LADDER, planted_ladder


@pytest.fixture(scope="module")
def found() -> Approaches:
    return compare_approaches(planted_ladder(0.003), draws=100, law={"bootstrap": 50})


def test_every_approach_stands_under_every_accounting(found: Approaches) -> None:
    table = found.table()
    assert len(table) == 16
    assert table.groupby(["n_counts", "compute"]).size().tolist() == [4] * 4
    assert (table["refused"] == "").all()
    assert found.main == Accounting("n_params_non_embedding", "exact")
    assert table.iloc[0][["n_counts", "compute"]].tolist() == ["parameters without embeddings", "exact"]
    assert (table["a_lower"] < table["a"]).all()
    assert (table["a"] < table["a_upper"]).all()
    assert found.at == pytest.approx(4e12)


def test_they_agree_on_a_planted_surface_and_the_counting_matters(found: Approaches) -> None:
    """Embeddings counted, N grows slower: the small models' embeddings make them look larger than they learn."""
    a = found.table().set_index(["approach", "n_counts", "compute"])["a"]
    truth = LADDER["beta"] / (LADDER["alpha"] + LADDER["beta"])
    assert a["3, surface", "parameters without embeddings", "6ND"] == pytest.approx(truth, abs=0.02)
    for approach in ("2, parabola", "2, Akima", "1, envelope"):
        assert a[approach, "parameters without embeddings", "6ND"] == pytest.approx(truth, abs=0.06)
    for approach in ("1, envelope", "2, parabola", "2, Akima", "3, surface"):
        assert a[approach, "parameters without embeddings", "exact"] > a[approach, "all parameters", "exact"] + 0.05


@pytest.mark.parametrize("surface", [SYMMETRIC, CHINCHILLA])
def test_the_bisection_is_the_closed_form_at_6nd(surface: dict[str, float]) -> None:
    points = observe(slices_of(surface), Accounting("n"))
    fitted = fit(Chinchilla(n="n"), slices_of(surface, noise=0.01), bootstrap=20)
    flops = np.geomspace(1e15, 1e23, 5)
    numeric, closed = optimal_on(fitted, points.cost(), flops), compute_optimal(fitted, flops).table
    np.testing.assert_allclose(numeric.n, closed["n"], rtol=1e-9)
    np.testing.assert_allclose(numeric.d, closed["d"], rtol=1e-9)
    np.testing.assert_allclose(
        np.percentile(numeric.n_draws, 2.5, axis=0, method="weibull"), closed["n_lower"], rtol=1e-9
    )


def test_the_optimum_under_the_measured_cost_matches_brute_force() -> None:
    runs = planted_ladder()
    points = observe(runs, Accounting())
    fitted = fit("chinchilla", runs, bootstrap=0)
    found = optimal_on(fitted, points.cost(), np.array([1e10, 1e12]))
    for i, flops in enumerate((1e10, 1e12)):
        n = np.geomspace(1e3, 1e6, 400001)
        tokens = flops / np.exp(points.cost().ln_per_token(np.log(n)))
        losses = fitted.law.predict(fitted.params, {"n_params_non_embedding": n, "tokens": tokens})
        assert n[losses.argmin()] == pytest.approx(found.n[i], rel=1e-3)


def test_the_cost_follows_the_measured_one() -> None:
    runs = planted_ladder()
    points = observe(runs, Accounting())
    per_token = (runs["flops"] / runs["tokens"]).to_numpy()
    fitted = np.exp(points.cost().ln_per_token(np.log(runs["n_params_non_embedding"].to_numpy())))
    np.testing.assert_allclose(fitted, per_token, rtol=0.03)
    sizes = points.sizes
    np.testing.assert_allclose(1e12 / points.tokens(sizes, 1e12), np.unique(per_token.round(6)), rtol=1e-12)
    ends = points.cost().elasticity(np.log(np.array([1e-3, 1e15])))
    assert ends == pytest.approx(points.cost().elasticity(np.log(sizes[[0, -1]])))


def test_a_rule_that_is_the_measured_cost_is_not_repeated() -> None:
    found = compare_approaches(ladder_of(SYMMETRIC), n="n", draws=0, law={"bootstrap": 0})
    assert [item.accounting.compute for item in found.items] == ["exact"] * 4
    assert found.table()["tokens_per_param"].to_numpy() == pytest.approx(
        [found.at / 6 / optimum(SYMMETRIC, found.at) ** 2] * 4, rel=0.4
    )


def test_a_table_without_flops_is_counted_at_6nd() -> None:
    found = compare_approaches(ladder_of(SYMMETRIC).drop(columns="flops"), n="n", draws=0, law={"bootstrap": 0})
    assert [item.accounting.compute for item in found.items] == ["6ND"] * 4


def test_what_fails_stands_in_its_row_with_the_reason() -> None:
    runs = planted_ladder(0.003)
    small = runs[runs["n_params_non_embedding"] < 6e3]
    found = compare_approaches(small, draws=50, law={"bootstrap": 20})
    table = found.table()
    assert "at no compute are there 4 sizes" in table["refused"][1]
    words = approach_table(found)
    assert words["a (N ~ C^a)"][1] == "refused"
    assert words["from"][1] == table["refused"][1]
    assert "refused: approach 2: at no compute" in approach_text(found)
    with pytest.raises(UserError, match="no column 'n_parms'; did you mean 'n_params'"):
        compare_approaches(runs, n="n_parms")


def test_no_approach_at_all_is_undecided() -> None:
    runs = planted_ladder(0.003).head(4)
    found = compare_approaches(runs, draws=0, law={"bootstrap": 0})
    (claim,) = approach_claims(found)
    assert claim.verdict == "undecided"
    assert "No approach finds compute-optimal sizes" in claim.text


def test_the_words_hold_the_numbers(found: Approaches) -> None:
    first, second = (claim.text for claim in approach_claims(found))
    row = found.table().iloc[2]
    assert f"{row['a']:.3f} [{row['a_lower']:.3f}, {row['a_upper']:.3f}] by approach 2, Akima" in first
    assert "(N counts parameters without embeddings, FLOPs as spent; 95 % intervals in brackets)" in first
    assert "tokens per parameter" in first
    surface = found.table().query("approach == '3, surface'")["a"]
    assert f"moves it by up to {surface.max() - surface.min():.3f} (approach 3, surface)" in second
    assert len(approach_table(found)) == 16
    assert any("a + b is not 1" in note for note in approach_notes(found))


def test_diverged_and_excluded_runs_are_left_out() -> None:
    runs = planted_ladder().assign(excluded=None)
    runs.loc[0, "status"] = "diverged"
    runs.loc[1, "excluded"] = "a broken node"
    assert observe(runs, Accounting()).runs == len(runs) - 2
    assert observe(runs, Accounting(), where="tokens > 1e6").runs == int((runs["tokens"] > 1e6).sum())


def test_a_value_without_a_logarithm_is_named() -> None:
    runs = planted_ladder()
    runs.loc[2, "val_loss"] = 0.0
    with pytest.raises(UserError, match=r"val_loss of 000000000002 is 0.0; .* \(1 of 48 are not\)"):
        observe(runs, Accounting())


def test_figures_take_a_table_and_axes_and_return_them() -> None:
    from matplotlib.figure import Figure

    runs = planted_ladder(0.003)
    for draw in (approach_plots.isoflop_slices, approach_plots.compute_envelope, approach_plots.loss_contours):
        axes = Figure().add_subplot()
        assert draw(runs, axes) is axes
        assert axes.get_xlabel()
        assert axes.get_legend() is not None


def test_a_refused_slice_is_hollow_and_has_no_minimum() -> None:
    from experiments.analysis.isoflop import isoflop

    table = slices_of(SYMMETRIC)
    first = table["flops"].min()
    cut = table[~((table["flops"] == first) & (table["n"] < 1.2 * optimum(SYMMETRIC, first)))]
    found = isoflop(observe(cut, Accounting("n")), draws=20, noise=1e-4)
    axes = approach_plots.isoflop_slices(cut, found=found)
    assert sum(line.get_marker() == "D" for line in axes.lines) == 4
    assert sum(line.get_marker() == "o" and line.get_markerfacecolor() == "white" for line in axes.lines) == 1
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "lowest at an edge: refused (1)" in words
