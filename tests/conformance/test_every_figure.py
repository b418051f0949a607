"""Every figure function keeps the contract: a table and an axes in, the same axes back, and a panel one can read.

Nothing is drawn elsewhere, titles fit the panel, the legend covers no data, colours are those that readers of every
colour vision tell apart, words in the SVG are words, and bad arguments get one clear line.
"""

import re
import warnings
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from experiments.analysis import figures
from experiments.analysis.axes import ALARM, NAME_COLOURS, VIRIDIS
from experiments.analysis.figures import FIGURES, FUNCTIONS, save
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Chinchilla
from experiments.analysis.saving import svg_text
from experiments.analysis.searched import Searched
from nanogpt.config import UserError
from tests.analysis.tables import planted_curves, planted_ladder
from tests.analysis.test_cbs import TARGET
from tests.analysis.test_cbs import curves as batch_curves
from tests.analysis.test_compare import variants
from tests.analysis.test_hyper import sweep
from tests.analysis.test_surface import SCALES, trials

matplotlib.use("Agg")


def by_hand(noise: float = 0.003) -> pd.DataFrame:
    """What a person types in: four columns, one seed, no status, no id."""
    return planted_ladder(noise)[["n_params", "tokens", "flops", "val_loss"]]


def swept() -> pd.DataFrame:
    """Three sizes over eight learning rates, three seeds."""
    rng = np.random.default_rng(0)
    return pd.DataFrame([
        {"n_params": n, "learning_rate": 2.0**rate, "seed": seed,
         "val_loss": 2 + 3 / n**0.2 + 0.05 * (rate + 8 - 0.3 * i) ** 2 + rng.normal(0, 0.01)}
        for i, n in enumerate((14_000, 60_000, 226_000)) for rate in range(-12, -4) for seed in (1, 2, 3)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def material() -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Table and keywords of every figure."""
    df = by_hand()
    law = _law(df)
    curves = planted_curves(planted_ladder(0.003))
    return {
        "loss_vs_compute": (df, {"fit": law}), "training_curves": (curves, {}),
        "predicted_vs_measured": (df, {"fit": law}), "residuals": (df, {"fit": law}), "isoflop_slices": (df, {}),
        "compute_envelope": (df, {}), "loss_contours": (df, {"fit": law}),
        "rollout_errors": (planted_ladder(0.003), {}), "profile": (df, {"fit": law, "parameter": "alpha"}),
        "profiles": (df, {"fit": law, "names": ["E", "alpha", "beta"]}), "corner": (law.draws, {"fit": law}),
        "loss_vs": (df, {"x": "tokens", "hue": "n_params"}),
        "loss_heatmap": (swept(), {"x": "learning_rate", "rows": "n_params"}),
        "lr_basin": (swept(), {}), "lr_transfer": (swept(), {}),
        "response_surface": (trials(pruned=5, lost=2), {"searched": Searched(SCALES)}),
        "multiplier_forest": (variants(2.0, noise=0.001), {"factor": "kind"}),
        "optimum_law": (sweep(tokens=[2**20]), {}), "batch_trade_off": (batch_curves(), {"target": TARGET}),
    }  # fmt: skip


def _law(df: pd.DataFrame) -> Fit:
    return fit(Chinchilla(n="n_params"), df[df["flops"] < df["flops"].max() / 2], bootstrap=60)


def page(layout: str | None) -> tuple[Figure, Any]:
    """Four panels as wide as those of a page of eight."""
    figure = Figure(figsize=(8, 8), layout=layout)
    return figure, figure.subplots(2, 2)


@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, "constrained") for name in FUNCTIONS), ("loss_vs_compute", None), ("corner", None),
     ("residuals", "tight"), ("profiles", "tight")],
)  # fmt: skip
def test_a_panel_of_a_page(name: str, layout: str | None, material: dict[str, Any]) -> None:
    df, options = material[name]
    before = df.copy(deep=True)
    figure, axes = page(layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = axes[0, 1]
        assert FUNCTIONS[name](df, ax=ax, **options) is ax
        figure.draw_without_rendering()
    pd.testing.assert_frame_equal(df, before)
    assert tuple(figure.get_size_inches()) == (8, 8)
    assert figure.axes == list(axes.flat), "no axes beside the user's"
    assert not figure.texts
    assert not figure.legends
    assert all(untouched(other) for other in axes.flat if other is not ax)
    title = ax._left_title
    assert title.get_text()
    for each in (ax, *ax.child_axes):
        check_title(each)
        check_legend(each)
        check_colours(each)
        check_ticks(each)
    assert title.get_text().split()[0] in svg_words(figure)


def untouched(ax: Axes) -> bool:
    """Nothing was drawn there."""
    drawn = [*ax.lines, *ax.collections, *ax.images, *ax.patches, *ax.texts, *ax.child_axes]
    return not drawn and ax.get_legend() is None and not ax.get_title(loc="left") and not ax.get_xlabel()


def svg_words(figure: Figure) -> str:
    """The words of the SVG; outlines of letters would leave none."""
    return " ".join(re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg_text(figure, "figure")))


def check_title(ax: Axes) -> None:
    for title in (ax._left_title, ax.title):
        if title is ax._left_title or not ax.axison:
            assert title.get_window_extent().width <= ax.bbox.width + 2, title.get_text()


def check_legend(ax: Axes) -> None:
    """No data point lies under the legend, and the legend does not leave its axes at the side."""
    legend = ax.get_legend()
    if legend is None or not legend.get_visible():
        return
    box = legend.get_window_extent()
    assert box.width <= ax.bbox.width + 1
    for each in (ax, *ax.child_axes):
        for points in points_of(each):
            inside = (
                (points[:, 0] > box.x0) & (points[:, 0] < box.x1) & (points[:, 1] > box.y0) & (points[:, 1] < box.y1)
            )
            assert not inside.any()


def points_of(ax: Axes) -> list[np.ndarray]:
    """Pixels of everything drawn as points, and of lines as far as they are shown."""
    found = [c.get_offset_transform().transform(c.get_offsets()) for c in ax.collections if len(c.get_offsets())]
    found += [line.get_transform().transform(line.get_xydata().astype(float)) for line in ax.lines
              if line.get_marker() not in ("None", "", None)]  # fmt: skip
    return [points for points in found if len(points)]


def check_colours(ax: Axes) -> None:
    """Greys, viridis, the colours of names and the one vermillion, or what a map of these colours gives."""
    known = np.vstack([VIRIDIS(np.linspace(0, 1, 512))[:, :3], [to_rgba(each)[:3] for each in (ALARM, *NAME_COLOURS)]])
    colours = [
        colour
        for line in ax.lines
        for colour in (
            [line.get_color()]
            if line.get_linestyle() != "None"
            else [line.get_markerfacecolor(), line.get_markeredgecolor()]
        )
        if str(colour) != "none"
    ]
    colours += [c for each in ax.collections if len(each.get_offsets()) for c in each.get_facecolor()]
    for colour in colours:
        rgb = np.array(to_rgba(colour)[:3])
        assert np.ptp(rgb) < 0.02 or np.abs(known - rgb).max(axis=1).min() < 0.02, colour


def check_ticks(ax: Axes) -> None:
    """Labels along the horizontal axis do not run into each other."""
    if not ax.axison or not ax.xaxis.get_tick_params().get("labelbottom", True):
        return
    shown = [text for text in ax.get_xticklabels() if text.get_text() and text.get_rotation() == 0]
    middles = [(box.x0 + box.x1) / 2 for box in (text.get_window_extent() for text in shown)]
    drawn = [text for text, at in zip(shown, middles, strict=True) if ax.bbox.x0 - 1 <= at <= ax.bbox.x1 + 1]
    ends = sorted((text.get_window_extent().x0, text.get_window_extent().x1) for text in drawn)
    assert all(left[1] <= right[0] + 1 for left, right in pairwise(ends)), [t.get_text() for t in shown]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_arguments_get_one_line_and_leave_the_axes_alone(name: str, material: dict[str, Any]) -> None:
    df, options = material[name]
    draw = FUNCTIONS[name]
    figure, axes = page(None)
    bad: list[tuple[tuple[Any, Any], str]] = [
        ((df.to_dict(), None), "needs a pandas DataFrame .* found dict"),
        ((df.iloc[:0], None), "the table has no rows"),
        ((df, axes), r"ax must be a matplotlib Axes, found ndarray; pick one of them, as in axes\[0, 0\]"),
        ((df, figure), "ax must be a matplotlib Axes, found Figure; take figure.add_subplot"),
        ((df, "ax"), "ax must be a matplotlib Axes, found str"),
        ((pd.DataFrame({"unheard_of": [1.0, 2.0]}), axes[0, 0]), "unheard_of|no column|not a column|took two values"),
    ]
    for (table, ax), message in bad:
        with pytest.raises(UserError, match=message) as caught:
            draw(table, ax, **options)
        assert "\n" not in str(caught.value)
    assert all(untouched(ax) for ax in axes.flat)


@pytest.mark.parametrize("name", ["predicted_vs_measured", "residuals", "profile", "profiles"])
def test_what_needs_a_fit_says_so(name: str) -> None:
    for given in ({}, {"fit": "chinchilla"}):
        with pytest.raises(UserError, match=rf"{name}: needs fit="):
            FUNCTIONS[name](by_hand(), **given)


def test_a_fit_of_another_table_is_refused(material: dict[str, Any]) -> None:
    law = material["residuals"][1]["fit"]
    with pytest.raises(UserError, match="none of the rows that the law was fitted to"):
        figures.residuals(by_hand(0.1), fit=law)


def test_rows_are_known_again_whatever_their_index(material: dict[str, Any]) -> None:
    df, options = material["residuals"]
    one, two = (figures.residuals(table, **options) for table in (df, df.sample(frac=1, random_state=0).reset_index()))
    heights = [np.sort(ax.collections[0].get_offsets()[:, 1]) for ax in (one, two)]
    np.testing.assert_allclose(heights[0], heights[1])
    np.testing.assert_allclose(heights[0], np.sort(100 * options["fit"].residuals))


def test_every_figure_of_a_report_has_a_function() -> None:
    assert set(FIGURES) <= set(FUNCTIONS)
    assert all(getattr(figures, name) is draw for name, draw in FUNCTIONS.items())


def test_what_the_user_sets_afterwards_stays(material: dict[str, Any]) -> None:
    df, options = material["loss_vs_compute"]
    _, axes = page(None)
    ax = figures.loss_vs_compute(df, ax=axes[0, 0], **options)
    ax.set_ylim(2.0, 9.0)
    ax.set_title("Mine")
    ax.figure.draw_without_rendering()
    assert ax.get_ylim() == (2.0, 9.0)
    assert (ax.get_title(), ax.get_title(loc="left")) == ("Mine", "")


def test_a_legend_stays_off_the_data_when_the_page_shrinks(material: dict[str, Any]) -> None:
    df, options = material["loss_vs_compute"]
    figure, axes = page("constrained")
    ax = figures.loss_vs_compute(df, ax=axes[0, 0], **options)
    for inches in (8, 5, 3, 12):
        figure.set_size_inches(inches, inches)
        figure.draw_without_rendering()
        check_legend(ax)
        check_title(ax)


def test_few_points_are_enough_to_draw() -> None:
    df = by_hand().iloc[[0, 7, 14, 21, 30, 40]]
    for draw in (figures.loss_vs_compute, figures.training_curves):
        draw(df.assign(id=["a", "b", "c", "d", "e", "f"])).figure.draw_without_rendering()
    figures.loss_vs(df.head(1), x="tokens").figure.draw_without_rendering()


def test_save_writes_both_files(tmp_path: Any, material: dict[str, Any]) -> None:
    df, options = material["residuals"]
    ax = figures.residuals(df, **options)
    for path in ("new/residuals", "new/residuals.png", "new/residuals.svg"):
        assert save(ax, tmp_path / path) == (tmp_path / "new/residuals.png", tmp_path / "new/residuals.svg")
    assert (tmp_path / "new/residuals.png").read_bytes()[:4] == b"\x89PNG"
    assert ">Residuals of the Chinchilla law" in (tmp_path / "new/residuals.svg").read_text()
    with pytest.raises(UserError, match="save: needs a matplotlib Axes or Figure, found str"):
        save("residuals", tmp_path)  # type: ignore[arg-type]  # what the message is for
    with pytest.raises(UserError, match="cannot be written"):
        save(ax, tmp_path / "new/residuals.png" / "below")
