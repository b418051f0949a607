"""Every figure: drawn without pyplot, titled, labelled with units, counted, and the same bytes twice."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis import plots, sweeps
from experiments.analysis.approaches import compare_approaches
from experiments.analysis.figures import FIGURES, Material, chosen_figures, draw_all
from experiments.analysis.fit import fit
from experiments.analysis.holdout import holdout
from experiments.analysis.optimum import find_optima
from experiments.analysis.rollout import rollout
from experiments.analysis.saving import inline_svg, png_bytes, svg_text
from experiments.analysis.searched import Searched
from experiments.analysis.spec import FigureSpec, check_report_spec
from nanogpt.config import UserError
from tests.analysis.tables import planted_curves, planted_ladder, planted_runs, with_diverged

matplotlib.use("Agg")
COMPARING = {"multiplier_forest", "optimum_law", "batch_trade_off"}  # test_comparison_plots.py has tables for these


@pytest.fixture(scope="module")
def material() -> Material:
    """35 runs in a 7 x 5 grid, one of them diverged, with curves, a fit, a holdout and (refused) optima."""
    runs = with_diverged(planted_runs(), 17)
    law = {"bootstrap": 30}
    held, optima = holdout("chinchilla", runs, largest=5, **law), find_optima(runs, "tokens", "n_embd")
    searched = Searched({"model.n_embd": "log", "tokens": "log"})
    rolled = rollout("chinchilla", runs, cuts=3, **law)
    found = compare_approaches(planted_ladder(), draws=30, law=law)
    whole = fit("chinchilla", runs, **law)
    return Material(runs, planted_curves(runs), whole, held, optima, searched, rolled, found)


def drawn(name: str, material: Material) -> Figure:
    """One figure of the registry on the 7 x 5 grid."""
    spec = FigureSpec.model_validate(
        {"figure": name, "x": "n_embd", "rows": "tokens"} | ({"x": "tokens"} if name == "lr_basin" else {})
    )
    return FIGURES[name].draw(material, spec)


@dataclass(frozen=True)
class Drawing:
    """A figure with the bytes of both its files, taken right after it was drawn."""

    figure: Figure
    png: bytes
    svg: str

    @classmethod
    def of(cls, name: str, material: Material) -> "Drawing":
        figure = drawn(name, material)
        return cls(figure, png_bytes(figure), svg_text(figure, name))


@pytest.fixture(scope="module")
def drawing(material: Material) -> Callable[[str], Drawing]:
    """Each figure of the registry, drawn and saved once for all that look at it."""
    return cache(lambda name: Drawing.of(name, material))


def texts(figure: Figure) -> str:
    """Every word on the figure."""
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


IN_REGISTRY = [name for name in FIGURES if name not in COMPARING]


@pytest.mark.parametrize("name", IN_REGISTRY)
def test_titled_labelled_and_not_empty(name: str, drawing: Callable[[str], Drawing]) -> None:
    figure = drawing(name).figure
    (axes,) = figure.axes
    assert len(axes.get_title(loc="left")) > 15
    panels: list[Axes] = axes.child_axes or [axes]
    if name == "corner":  # names of parameters stand along the outer edges
        assert panels[-1].get_xlabel() == "beta"
        assert "30 residual-bootstrap draws of the Chinchilla law" in texts(figure)
    else:
        assert panels[0].get_xlabel()
        assert panels[0].get_ylabel()
    assert all(panel.lines or panel.images or panel.collections for panel in panels)
    assert re.search(r"\d+ (fitted )?runs|one point per run", figure._supxlabel.get_text())
    image = matplotlib.image.imread(io.BytesIO(drawing(name).png))
    assert image.shape[1] > 600
    assert (image[..., :3].min(axis=2) < 0.9).mean() > 0.01, "the figure is blank"


@pytest.mark.parametrize("name", IN_REGISTRY)
def test_same_bytes_twice_and_no_date(name: str, material: Material, drawing: Callable[[str], Drawing]) -> None:
    one, two = drawing(name), Drawing.of(name, material)
    assert one.png == two.png
    assert one.svg == two.svg
    assert "dc:date" not in one.svg


def test_pyplot_is_left_alone(material: Material) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    drawn("loss_vs_compute", material)
    assert plt.get_fignums() == before


@pytest.mark.parametrize("name", IN_REGISTRY)
def test_ticks_are_plain_numbers(name: str, drawing: Callable[[str], Drawing]) -> None:
    figure = drawing(name).figure
    panels = figure.axes[0].child_axes or figure.axes
    first = panels[-1 if name == "corner" else 0]  # the last column's has no loss along its side
    for axis in (first.xaxis,) if name == "corner" else (first.xaxis, first.yaxis):
        labels = [text.get_text() for text in axis.get_ticklabels(which="both") if text.get_text()]
        assert len(labels) >= 3, name
        assert not any("times" in label or "^{0}" in label for label in labels), (name, labels)


def test_loss_vs_compute_shows_everything_a_reader_needs(material: Material) -> None:
    figure = drawn("loss_vs_compute", material)
    words = texts(figure)
    for part in ("lowest loss reached", "fitted law", "true entropy of the data, 1.943", "held out, not fitted (5)",
                 "beyond the fitted runs", "diverged (1)", "34 runs, 1 seed (1); 1 diverged"):  # fmt: skip
        assert part in words, part
    hollow = [line for line in figure.axes[0].lines if str(line.get_markerfacecolor()) == "white"]
    assert len(hollow) == 5


def test_diverged_runs_stand_at_the_top_edge(material: Material) -> None:
    axes = drawn("loss_vs_compute", material).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "X"]
    assert cross.get_transform() == axes.get_xaxis_transform()
    np.testing.assert_array_equal(cross.get_ydata(), [1.0])
    assert not cross.get_clip_on()


def test_heatmap_frames_the_best_cell_and_crosses_the_diverged_one(material: Material) -> None:
    axes = sweeps.loss_heatmap(material.runs, x="n_embd", rows="tokens")
    frame = axes.patches[-1]
    assert (frame.get_x(), frame.get_y()) == (5.5, 3.5), "the widest model with most tokens is best"
    assert len(axes.lines) == 2
    assert np.mean(axes.lines[0].get_xdata()) == pytest.approx(3.0)
    assert np.isnan(axes.images[0].get_array().filled(np.nan)).sum() == 1


def test_loss_vs_draws_means_over_seeds() -> None:
    runs = planted_runs(noise=0.01, seeds=3)
    runs = runs[runs["tokens"] == 2**22]
    axes = sweeps.loss_vs(runs, x="n_embd")
    (line,) = [container.lines[0] for container in axes.containers]
    np.testing.assert_allclose(
        np.asarray(line.get_ydata(), dtype=float), runs.groupby("model.n_embd")["val_loss"].mean().to_numpy()
    )


def test_lr_basin_stars_the_minimum_of_each_line() -> None:
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    rows = [
        {"id": f"{w}-{i}", "status": "completed", "seed": 1, "optimizer.learning_rate": rate, "model.n_embd": w,
         "val_loss": 2 + (i - best) ** 2 * 0.1}
        for w, best in ((16, 2), (32, 1)) for i, rate in enumerate(rates)
    ]  # fmt: skip
    axes = sweeps.lr_basin(pd.DataFrame(rows), hue="n_embd")
    stars = {float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "*"}
    assert stars == {4e-3, 2e-3}
    assert axes.get_xscale() == "log"


def test_lr_transfer_marks_the_optima_and_the_base_s() -> None:
    from tests.analysis.test_optimum import BEST, RATE, basins, diverge

    runs = diverge(basins(seeds=3, noise=0.002), 128, 2.0**-5, (1,))
    optima = find_optima(runs, "learning_rate", "n_embd", bootstrap=50)
    figure = FIGURES["lr_transfer"].draw(Material(runs, optima=optima), FigureSpec(figure="lr_transfer"))
    (axes,) = figure.axes[0].child_axes
    diamonds = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(np.log2(diamonds), list(BEST.values()), atol=0.05)
    pairs = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert (diamonds[0], diamonds[0]) in pairs, "a vertical line at the base's optimum"
    assert len([line for line in axes.lines if line.get_marker() == "|"]) == 3, "an interval per size"
    assert sum(line.get_linestyle() == "None" and line.get_marker() == "o" for line in axes.lines) == 3
    (crosses,) = [line for line in axes.lines if line.get_marker() == "X"]
    assert sorted(crosses.get_xdata()) == [2.0**-4, 2.0**-3]
    assert axes.get_xscale() == "log"
    words = texts(figure)
    for part in ("octaves", "n_embd = 32", "optimum of 32", "diverged (2)", "88 runs, 3 seeds (1-3)", "50 bootstrap"):
        assert part in words, part
    assert set(axes.get_xticks()) <= set(runs[RATE])


def test_lr_transfer_draws_panels_side_by_side_on_one_scale() -> None:
    from tests.analysis.test_optimum import basins

    runs = pd.concat([basins(**{"parametrization.mode": mode}) for mode in ("sp", "mup")], ignore_index=True)
    material = Material(runs, optima=find_optima(runs, "learning_rate", "n_embd", "mode"))
    left, right = FIGURES["lr_transfer"].draw(material, FigureSpec(figure="lr_transfer")).axes[0].child_axes
    assert left.get_title(loc="left").startswith("sp: -2.00 octaves")
    assert right.get_title(loc="left").startswith("mup: ")
    assert left.get_ylim() == right.get_ylim()


def test_lr_transfer_draws_the_rows_that_were_fitted() -> None:
    from tests.analysis.test_optimum import basins

    runs = pd.concat([basins(**{"train.batch_size": size}) for size in (8, 16)], ignore_index=True)
    optima = find_optima(runs, "learning_rate", "n_embd", where="batch_size == 8")
    assert "30 runs" in texts(
        FIGURES["lr_transfer"].draw(Material(runs, optima=optima), FigureSpec(figure="lr_transfer"))
    )


def test_of_many_runs_the_legend_names_some_between_the_ends() -> None:
    runs = planted_runs()
    runs["model.n_embd"] = np.arange(1, len(runs) + 1)
    axes = plots.training_curves(planted_curves(runs), x="tokens", hue="n_embd")
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (len(named), named[0], named[-1]) == (5, "n_embd = 1", "n_embd = 35")
    assert len(axes.figure.axes) == 1


def test_what_cannot_be_drawn_keeps_its_place_with_the_reason() -> None:
    runs = planted_runs().assign(status="failed", val_loss=np.nan)
    figures = chosen_figures(
        check_report_spec({"figures": ["loss_vs_compute", "loss_vs", "residuals"]}), Material(runs)
    )
    reasons = [figure.problem for figure in draw_all(figures, Material(runs))]
    assert reasons == [
        "loss_vs_compute: no finished run has a val_loss to draw",
        "loss_vs: the report section names no x for it",
        "residuals: no law was fitted",
    ]


def test_unknown_column_is_a_user_error(material: Material) -> None:
    with pytest.raises(UserError, match=r"did you mean 'n_embd'"):
        sweeps.loss_vs(material.runs, x="n_emb")


def test_inline_svg_prefixes_every_id_and_reference(material: Material) -> None:
    svg = inline_svg(svg_text(drawn("loss_vs_compute", material), "a"), "figure-1", "title")
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert ids
    assert len(ids) == len(set(ids))
    assert all(name.startswith("figure-1-") for name in ids)
    references = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
    assert references
    assert set(references) <= set(ids)
    assert "http" not in svg
