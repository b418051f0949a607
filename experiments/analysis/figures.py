"""The registry of figures a report can show, what each is drawn from, its caption, and its bytes as PNG and SVG."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis import approach_plots, basins, comparison_plots, plots, surface, sweeps
from experiments.analysis.approaches import Approaches, Name
from experiments.analysis.columns import excluded
from experiments.analysis.corner import corner
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import Holdout
from experiments.analysis.optimum import Optima
from experiments.analysis.profileplot import profiles
from experiments.analysis.rollout import Rollout
from experiments.analysis.searched import Searched
from experiments.analysis.spec import FigureSpec, ReportSpec
from nanogpt.config import UserError

BAND = "The shaded band is a 95 % interval for one new run: {draws} bootstrap refits, each with the fit's residuals. "
SEEDS = "The line under the figure counts runs and seeds; diverged runs are marked at the top edge. "


@dataclass(frozen=True, eq=False)
class Material:
    """What figures are drawn from: the table of runs, their curves, and the law and the optima where there are any."""

    runs: pd.DataFrame
    curves: pd.DataFrame | None = None
    fit: Fit | None = None
    holdout: Holdout | None = None
    optima: Optima | None = None
    searched: Searched | None = None
    rollout: Rollout | None = None
    approaches: Approaches | None = None


@dataclass(frozen=True)
class Kind:
    """One entry of the registry: how the figure is drawn, and what its caption says."""

    draw: Callable[[Material, FigureSpec], Figure]
    caption: str


@dataclass(frozen=True)
class Drawn:
    """One figure of a report: unique name, caption, and its files' bytes; or the reason why it could not be drawn."""

    name: str
    caption: str
    png: bytes = b""
    svg: str = ""
    problem: str | None = None


def _needs(value: str | None, figure: str, key: str) -> str:
    if value is None:
        raise UserError(f"{figure}: the report section names no {key} for it")
    return value


def _curves(material: Material, figure: str) -> pd.DataFrame:
    if material.curves is None or not len(material.curves):
        raise UserError(f"{figure}: no run left a training curve")
    return material.curves


def _loss_vs_compute(m: Material, s: FigureSpec) -> Figure:
    return figure_of(
        plots.loss_vs_compute(m.runs, m.curves, m.fit, m.holdout, hue=s.hue or "n_params", y=s.y or "val_loss")
    )


def _training_curves(m: Material, s: FigureSpec) -> Figure:
    x = s.x if s.x in ("flops", "tokens", "step") else "flops"
    curves = _curves(m, "training_curves")
    hue = s.hue or ("n_params" if "n_params" in curves.columns else None)
    return figure_of(plots.training_curves(curves, x, hue, s.y or "val_loss"))


def _predicted_vs_measured(m: Material, s: FigureSpec) -> Figure:
    if m.holdout is None:
        raise UserError("predicted_vs_measured: no runs were held out")
    return figure_of(plots.predicted_vs_measured(m.holdout))


def _fitted(m: Material, figure: str) -> Fit:
    if m.fit is None:
        raise UserError(f"{figure}: no law was fitted")
    return m.fit


def _residuals(m: Material, s: FigureSpec) -> Figure:
    return figure_of(plots.residuals(_fitted(m, "residuals"), m.runs, hue=s.hue or "n_params"))


def _loss_vs(m: Material, s: FigureSpec) -> Figure:
    return figure_of(sweeps.loss_vs(m.runs, _needs(s.x, "loss_vs", "x"), s.hue, s.y or "val_loss"))


def _loss_heatmap(m: Material, s: FigureSpec) -> Figure:
    x, rows = _needs(s.x, "loss_heatmap", "x"), _needs(s.rows, "loss_heatmap", "rows")
    return figure_of(sweeps.loss_heatmap(m.runs, x, rows, s.y or "val_loss"))


def _lr_basin(m: Material, s: FigureSpec) -> Figure:
    return figure_of(sweeps.lr_basin(m.runs, s.x or "learning_rate", s.hue, s.y or "val_loss"))


def _lr_transfer(m: Material, s: FigureSpec) -> Figure:
    if m.optima is None:
        raise UserError("lr_transfer: the study found no optima; it needs an `optimum:` section and finished runs")
    return basins.lr_transfer(m.runs, m.optima)


def _response_surface(m: Material, s: FigureSpec) -> Figure:
    names = [s.x, s.rows] if s.x and s.rows else []
    return surface.response_surface(m.runs, m.searched, s.y or "val_loss", names)


def _approach(m: Material, figure: str, *names: Name) -> Any:
    """The result of the first of these approaches that has one; UserError with the reason where none has."""
    if m.approaches is None:
        raise UserError(
            f"{figure}: the study compares no approaches; it needs an `approaches:` section and finished runs"
        )
    found = [item for item in (m.approaches.get(name) for name in names) if item is not None]
    result = next((item.result for item in found if item.result is not None), None)
    if result is None:
        raise UserError(f"{figure}: {found[0].refused}")
    return result


def _isoflop_slices(m: Material, s: FigureSpec) -> Figure:
    return figure_of(approach_plots.isoflop_slices(_approach(m, "isoflop_slices", "parabola", "akima")))


def _compute_envelope(m: Material, s: FigureSpec) -> Figure:
    return figure_of(approach_plots.compute_envelope(_approach(m, "compute_envelope", "envelope")))


def _loss_contours(m: Material, s: FigureSpec) -> Figure:
    _approach(m, "loss_contours", "surface")
    assert m.approaches is not None
    return figure_of(approach_plots.loss_contours(m.approaches))


def _rollout_errors(m: Material, s: FigureSpec) -> Figure:
    if m.rollout is None:
        raise UserError("rollout_errors: no law was fitted below a cut")
    return figure_of(approach_plots.rollout_errors(m.rollout))


def _multiplier_forest(m: Material, s: FigureSpec) -> Figure:
    x = s.x if s.x in ("flops", "tokens", "wall_seconds") else "flops"
    factor = _needs(s.hue, "multiplier_forest", "hue (the factor whose values are compared)")
    return figure_of(comparison_plots.multiplier_forest(m.runs, factor, x=x, y=s.y or "val_loss"))


def _optimum_law(m: Material, s: FigureSpec) -> Figure:
    of, size = s.x or "learning_rate", s.hue or "n_params_non_embedding"
    return figure_of(comparison_plots.optimum_law(m.runs, of, size, s.y or "val_loss"))


def _batch_trade_off(m: Material, s: FigureSpec) -> Figure:
    curves = _curves(m, "batch_trade_off")
    return figure_of(comparison_plots.batch_trade_off(curves, y=s.y or "val_loss"))


def _corner(m: Material, s: FigureSpec) -> Figure:
    return corner(_fitted(m, "corner"))


def _profiles(m: Material, s: FigureSpec) -> Figure:
    return profiles(_fitted(m, "profiles"))


def figure_of(axes: Axes) -> Figure:
    """The figure that axes belong to."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


FIGURES: dict[str, Kind] = {
    "loss_vs_compute": Kind(
        _loss_vs_compute,
        "Every run's final loss against its training compute. The dashed line is the lowest loss reached by any run or "
        "curve at that compute; hollow runs were held out of the fit; the grey area lies beyond the fitted runs. "
        + BAND
        + SEEDS,
    ),
    "training_curves": Kind(_training_curves, "Loss at each evaluation while training, one line per run."),
    "predicted_vs_measured": Kind(
        _predicted_vs_measured,
        "Held-out runs: what the law fitted to the smaller runs says of them, against what they measured. Bars are "
        "95 % intervals for one new run ({held_draws} bootstrap refits and the fit's residuals); points on the dashed "
        "line are predicted exactly.",
    ),
    "residuals": Kind(
        _residuals,
        "What the law fitted to all runs leaves over. Scatter is noise; a bend or a fan says the law is wrong.",
    ),
    "loss_vs": Kind(_loss_vs, "Final loss against one factor: means over the runs of a point, bars their sd. " + SEEDS),
    "loss_heatmap": Kind(
        _loss_heatmap, "Mean final loss over the runs of each cell. The lowest is framed, a cross marks divergence."
    ),
    "lr_basin": Kind(
        _lr_basin, "Final loss against learning rate (base-2 axis); stars mark each line's best. " + SEEDS
    ),
    "lr_transfer": Kind(
        _lr_transfer,
        "The basin of each size, a panel per parametrization. Diamonds are fitted optima with their intervals over "
        "seeds, the dashed line the base's optimum: where diamonds leave it, the optimum does not transfer. " + SEEDS,
    ),
    "isoflop_slices": Kind(
        _isoflop_slices,
        "Approach 2: losses of different sizes at equal compute. Diamonds are the lowest points of the curves, their "
        "bars 95 % intervals from tables disturbed by the noise of a loss, the dashed line the power law through them. "
        "A hollow slice has its lowest loss at the edge of its sizes, so its best size is not known and not used.",
    ),
    "compute_envelope": Kind(
        _compute_envelope,
        "Approach 1: which size has the lowest loss at each compute. Only computes at which both a smaller and a "
        "larger size did worse are used; elsewhere the best size may lie beyond the ones trained.",
    ),
    "loss_contours": Kind(
        _loss_contours,
        "Approach 3: the fitted law over size and tokens. The thick line is its best N and D at each compute within "
        "the computes measured; hollow marks are the lowest points of approach 2, which does not know the law.",
    ),
    "corner": Kind(
        _corner,
        "Bootstrap draws of every parameter, alone down the diagonal and in pairs below it: a long thin cloud is a "
        "combination of two parameters that these runs do not pin down.",
    ),
    "profiles": Kind(
        _profiles,
        "How much worse the fit gets when one parameter is held at other values and the others are refitted. The "
        "interval ends where that is more than noise explains; a standard error stands for the dotted parabola.",
    ),
    "rollout_errors": Kind(
        _rollout_errors,
        "Every prediction of a run above a cut by the law fitted below it, against how far it reached. The grey band "
        "is the mean absolute error, the number to quote; bars are 95 % intervals for one new run.",
    ),
    "multiplier_forest": Kind(
        _multiplier_forest,
        "How much more compute the first variant needs for the loss of another, at each level of compute and over all "
        "of them as one curve. Bars are 90 % intervals over seeds: a win lies above 1 with its whole interval, a loss "
        "below, and what reaches across is a tie.",
    ),
    "optimum_law": Kind(
        _optimum_law,
        "The value of lowest loss at each size, and the power law through them with its 90 % band. Bars are 95 % "
        "intervals over seeds; a size whose lowest loss lies at the edge of the values tried has no optimum.",
    ),
    "batch_trade_off": Kind(
        _batch_trade_off,
        "Steps and tokens that each batch size takes to one loss. The line is (S / S_min - 1)(E / E_min - 1) = 1: at "
        "the critical batch, the star, both are twice their least.",
    ),
    "response_surface": Kind(
        _response_surface,
        "What the search has learnt of its space. Above: every trial over pairs of its most influential factors, on a "
        "thin-plate spline in those two (smoothing by 5-fold cross-validation, within the hull of the trials; the "
        "other factors vary from trial to trial). Below: loss against each factor alone. The share is that of the "
        "variance of the trials' ranks between bins of the factor, adjusted for the number of bins. Where trials were "
        "pruned, the loss is the one at the first rung, where every trial was measured after the same share of its "
        "training; the star is the lowest final loss. Orange crosses diverged, and rank last.",
    ),
}


def chosen_figures(spec: ReportSpec, material: Material) -> tuple[FigureSpec, ...]:
    """The figures the report section lists, or those its table can fill; defaults of the section filled in."""
    if spec.figures is not None:
        listed = spec.figures
    else:
        names = ["lr_transfer"] if material.optima is not None else []
        names += ["response_surface"] if material.searched is not None else []
        names += ["isoflop_slices", "compute_envelope", "loss_contours"] if material.approaches is not None else []
        names += ["loss_vs_compute", "training_curves"]
        names += ["predicted_vs_measured"] if material.holdout is not None else []
        names += ["rollout_errors"] if material.rollout is not None and material.holdout is None else []
        names += ["residuals"] if material.fit is not None else []
        names += ["loss_heatmap"] if spec.x and spec.rows else ["loss_vs"] if spec.x else []
        listed = tuple(FigureSpec.model_validate({"figure": name}) for name in names)
    defaults = {"x": spec.x, "y": spec.y, "hue": spec.hue, "rows": spec.rows}
    return tuple(
        figure.model_copy(update={key: value for key, value in defaults.items() if getattr(figure, key) is None})
        for figure in listed
    )


def draw_all(figures: tuple[FigureSpec, ...], material: Material) -> tuple[Drawn, ...]:
    """Every figure as bytes; one that cannot be drawn keeps its place with the reason."""
    seen: dict[str, int] = {}
    done = []
    for spec in figures:
        seen[spec.figure] = seen.get(spec.figure, 0) + 1
        name = spec.figure if seen[spec.figure] == 1 else f"{spec.figure}_{seen[spec.figure]}"
        done.append(_draw(name, spec, material))
    return tuple(done)


def _draw(name: str, spec: FigureSpec, material: Material) -> Drawn:
    kind = FIGURES[spec.figure]
    law = material.holdout.fit if material.holdout is not None else material.fit
    held = material.holdout.fit if material.holdout is not None else None
    caption = kind.caption if law is not None else kind.caption.replace(BAND, "")
    left_out = int(excluded(material.runs).sum())
    caption += f" {left_out} runs were excluded by hand." if left_out else ""
    caption = caption.format(draws=len(law.draws) if law else 0, held_draws=len(held.draws) if held else 0).strip()
    try:
        figure = kind.draw(material, spec)
    except UserError as error:
        return Drawn(name, caption, problem=str(error))
    return Drawn(name, caption, png=png_bytes(figure), svg=svg_text(figure, name))


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as SVG, the same text for the same figure and salt: no date, hashed ids salted by its name."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue().decode("utf-8")


def picture(figure: Figure, suffix: str) -> bytes:
    """The figure as the bytes of a .png, .svg or .pdf."""
    if suffix == ".png":
        return png_bytes(figure)
    if suffix == ".svg":
        return svg_text(figure, "figure").encode()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], metadata={"CreationDate": None})
    return buffer.getvalue()


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """The <svg> element alone, fit for an HTML page with other figures: every id and reference to one carries `prefix`,
    nothing points outside, and `title` (already escaped) says what it is."""
    body = _bare(svg[svg.index("<svg") :])
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _bare(body: str) -> str:
    """The opening tag with nothing but its viewBox: namespaces are implied in HTML and the page sets the size."""
    end = body.index(">")
    view = re.search(r'viewBox="[^"]*"', body[:end])
    assert view is not None, "matplotlib writes a viewBox"
    return f"<svg {view.group(0)}" + body[end:]
