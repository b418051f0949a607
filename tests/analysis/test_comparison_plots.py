"""The figures of comparisons: what is marked, refused and said, drawn into a given `ax` and through the registry."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.analysis.by_level import by_level
from experiments.analysis.comparison_plots import batch_trade_off, multiplier_forest, optimum_law
from experiments.analysis.figures import FIGURES, Material, draw_all, figure_of, png_bytes
from experiments.analysis.spec import FigureSpec
from experiments.analysis.ticks import alike
from nanogpt.config import UserError
from tests.analysis.test_cbs import BATCHES, TARGET, curves
from tests.analysis.test_compare import COMPUTE, variants
from tests.analysis.test_hyper import SIZES, sweep


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")))


def test_the_forest_has_a_row_per_level_and_one_for_all() -> None:
    axes = multiplier_forest(variants(2.0, noise=0.001), factor="kind")
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == len(COMPUTE) + 1
    assert names[0] == "all levels"
    assert names[:0:-1] == ["1e9", "3.98e9", "1.58e10", "6.31e10", "2.51e11", "1e12"], "compute in one notation"
    said = words(figure_of(axes))
    assert re.search(r"muon against adamw: (1\.9|2)", said)
    assert "a win" in said
    assert "36 runs, 3 seeds (1-3)" in said


def test_values_of_one_axis_are_in_one_notation() -> None:
    assert alike([5900, 4.2e6, 99.9e9]) == ["5.9k", "4.2M", "99.9B"]
    assert alike([1, 20, 5900, 99.9e9, 2.5e11]) == ["1", "20", "5.9e3", "9.99e10", "2.5e11"]
    assert alike([1e9, 2e10], "flops") == ["1e9", "2e10"]
    assert alike([1e9, 2e10], "tokens") == ["1B", "20B"]


def test_levels_have_the_planted_multiplier_with_and_without_a_matched_baseline() -> None:
    for runs in (variants(2.0), pd.concat([
        variants(2.0)[lambda t: t["optimizer.kind"] == "adamw"],
        variants(2.0, compute=COMPUTE[:5] * 1.7)[lambda t: t["optimizer.kind"] == "muon"]])):  # fmt: skip
        _, table = by_level(runs, "kind", "adamw", "muon")
        assert table["multiplier"].to_numpy() == pytest.approx(2.0, rel=1e-4)
        assert table["outcome"].eq("win").all()


def test_one_seed_has_no_verdict_per_level() -> None:
    _, table = by_level(variants(2.0, seeds=1, noise=0.001), "kind", "adamw", "muon")
    assert table["outcome"].eq("").all()
    assert table["lower"].isna().all()
    assert "one seed: no interval, no verdict" in words(
        figure_of(multiplier_forest(variants(2.0, seeds=1), factor="kind"))
    )


def test_what_cannot_be_compared_is_said() -> None:
    alone = variants(2.0)[lambda t: t["optimizer.kind"] == "adamw"]
    with pytest.raises(UserError, match=r"optimizer\.kind has one value among the finished runs"):
        multiplier_forest(alone, factor="kind")
    with pytest.raises(UserError, match="it takes two levels"):
        multiplier_forest(variants(2.0, compute=COMPUTE[:1]), factor="kind")


def test_the_law_of_an_optimum_goes_through_its_points_and_names_what_is_refused() -> None:
    axes = optimum_law(sweep(sizes=[*SIZES, 2**40], tokens=[2**20]), of="learning_rate")
    points = next(line for line in axes.lines if line.get_marker() == "D")
    assert len(points.get_xdata()) == len(SIZES)
    law = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 60)
    slope = np.polyfit(np.log(law.get_xdata()), np.log(law.get_ydata()), 1)[0]
    assert slope == pytest.approx(-0.3, abs=1e-6)
    assert "no optimum at 1.1e12: the lowest loss lies at the lower edge" in words(figure_of(axes))


def test_the_trade_off_has_a_point_per_run_and_its_star() -> None:
    axes = batch_trade_off(curves(), target=TARGET)
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((1000, 2 * 500 * 8192), rel=2e-3)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 2 * len(BATCHES)
    with pytest.raises(UserError, match="it takes 3 batch sizes that reach the loss, found 0"):
        batch_trade_off(curves(), target=0.001)


def test_reports_draw_them_with_the_same_bytes_twice() -> None:
    cases = ((Material(variants(2.0, noise=0.001)), FigureSpec(figure="multiplier_forest", hue="kind")),
             (Material(sweep(tokens=[2**20])), FigureSpec(figure="optimum_law")),
             (Material(variants(2.0), curves()), FigureSpec(figure="batch_trade_off")))  # fmt: skip
    for material, spec in cases:
        one, two = (png_bytes(FIGURES[spec.figure].draw(material, spec)) for _ in range(2))
        assert one == two
    (drawn,) = draw_all((FigureSpec(figure="multiplier_forest"),), cases[0][0])
    assert drawn.problem is not None
    assert "names no hue" in drawn.problem
