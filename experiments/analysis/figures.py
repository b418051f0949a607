"""The figures: one function each that takes a DataFrame and an `ax` and returns it, and the registry of those that a
report can show, what each is drawn from, and its caption."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.approach_plots import compute_envelope, isoflop_slices, loss_contours, rollout_errors
from experiments.analysis.approaches import Approaches, Name
from experiments.analysis.axes import HUE
from experiments.analysis.basins import lr_transfer
from experiments.analysis.columns import excluded
from experiments.analysis.comparison_plots import batch_trade_off, multiplier_forest, optimum_law
from experiments.analysis.corner import corner, draws_of
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import Holdout
from experiments.analysis.optimum import Optima
from experiments.analysis.plots import loss_vs_compute, predicted_vs_measured, residuals, training_curves
from experiments.analysis.profileplot import profile, profiles
from experiments.analysis.ranking import Ranking
from experiments.analysis.rollout import Rollout
from experiments.analysis.saving import figure_of, png_bytes, save, svg_text
from experiments.analysis.searched import Searched
from experiments.analysis.spec import FigureSpec, ReportSpec
from experiments.analysis.surface import response_surface
from experiments.analysis.sweeps import loss_heatmap, loss_vs, lr_basin
from nanogpt.config import UserError

# Every figure for a page of one's own: `figure(df, ax=None, **keywords) -> Axes` (contract.py).
FUNCTIONS: dict[str, Callable[..., Axes]] = {
    "loss_vs_compute": loss_vs_compute,
    "training_curves": training_curves,
    "predicted_vs_measured": predicted_vs_measured,
    "residuals": residuals,
    "isoflop_slices": isoflop_slices,
    "compute_envelope": compute_envelope,
    "loss_contours": loss_contours,
    "rollout_errors": rollout_errors,
    "profile": profile,
    "profiles": profiles,
    "corner": corner,
    "loss_vs": loss_vs,
    "loss_heatmap": loss_heatmap,
    "lr_basin": lr_basin,
    "lr_transfer": lr_transfer,
    "response_surface": response_surface,
    "multiplier_forest": multiplier_forest,
    "optimum_law": optimum_law,
    "batch_trade_off": batch_trade_off,
}
__all__ = ["FIGURES", "FUNCTIONS", "Material", "chosen_figures", "draw_all", "save", *FUNCTIONS]

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
    ranking: Ranking | None = None


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
    given: dict[str, Any] = {"curves": m.curves, "fit": m.fit, "holdout": m.holdout}
    return figure_of(loss_vs_compute(m.runs, **given, hue=s.hue or HUE, y=s.y or "val_loss"))


def _training_curves(m: Material, s: FigureSpec) -> Figure:
    x = s.x if s.x in ("flops", "tokens", "step") else "flops"
    return figure_of(training_curves(_curves(m, "training_curves"), x=x, hue=s.hue or HUE, y=s.y or "val_loss"))


def _predicted_vs_measured(m: Material, s: FigureSpec) -> Figure:
    if m.holdout is None:
        raise UserError("predicted_vs_measured: no runs were held out")
    return figure_of(predicted_vs_measured(m.runs, holdout=m.holdout))


def _fitted(m: Material, figure: str) -> Fit:
    if m.fit is None:
        raise UserError(f"{figure}: no law was fitted")
    return m.fit


def _residuals(m: Material, s: FigureSpec) -> Figure:
    return figure_of(residuals(m.runs, fit=_fitted(m, "residuals"), hue=s.hue or HUE))


def _loss_vs(m: Material, s: FigureSpec) -> Figure:
    return figure_of(loss_vs(m.runs, x=_needs(s.x, "loss_vs", "x"), hue=s.hue, y=s.y or "val_loss"))


def _loss_heatmap(m: Material, s: FigureSpec) -> Figure:
    x, rows = _needs(s.x, "loss_heatmap", "x"), _needs(s.rows, "loss_heatmap", "rows")
    return figure_of(loss_heatmap(m.runs, x=x, rows=rows, y=s.y or "val_loss"))


def _lr_basin(m: Material, s: FigureSpec) -> Figure:
    return figure_of(lr_basin(m.runs, x=s.x or "learning_rate", hue=s.hue or HUE, y=s.y or "val_loss"))


def _lr_transfer(m: Material, s: FigureSpec) -> Figure:
    if m.optima is None:
        raise UserError("lr_transfer: the study found no optima; it needs an `optimum:` section and finished runs")
    return figure_of(lr_transfer(m.runs, optima=m.optima))


def _response_surface(m: Material, s: FigureSpec) -> Figure:
    names = [s.x, s.rows] if s.x and s.rows else []
    return figure_of(response_surface(m.runs, searched=m.searched, y=s.y or "val_loss", names=names))


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
    return figure_of(isoflop_slices(m.runs, found=_approach(m, "isoflop_slices", "parabola", "akima")))


def _compute_envelope(m: Material, s: FigureSpec) -> Figure:
    return figure_of(compute_envelope(m.runs, found=_approach(m, "compute_envelope", "envelope")))


def _loss_contours(m: Material, s: FigureSpec) -> Figure:
    _approach(m, "loss_contours", "surface")
    return figure_of(loss_contours(m.runs, approaches=m.approaches))


def _rollout_errors(m: Material, s: FigureSpec) -> Figure:
    if m.rollout is None:
        raise UserError("rollout_errors: no law was fitted below a cut")
    return figure_of(rollout_errors(m.runs, rollout=m.rollout))


def _multiplier_forest(m: Material, s: FigureSpec) -> Figure:
    x = s.x if s.x in ("flops", "tokens", "wall_seconds") else "flops"
    if m.ranking is not None and s.hue in (None, m.ranking.factor):
        ranking = m.ranking
        return figure_of(
            multiplier_forest(m.runs, factor=ranking.factor, baseline=ranking.baseline, x=ranking.x, y=ranking.y)
        )
    factor = _needs(s.hue, "multiplier_forest", "hue (the factor whose values are compared)")
    return figure_of(multiplier_forest(m.runs, factor=factor, x=x, y=s.y or "val_loss"))


def _optimum_law(m: Material, s: FigureSpec) -> Figure:
    of, size = s.x or "learning_rate", s.hue or "n_params_non_embedding"
    return figure_of(optimum_law(m.runs, of=of, size=size, y=s.y or "val_loss"))


def _batch_trade_off(m: Material, s: FigureSpec) -> Figure:
    return figure_of(batch_trade_off(_curves(m, "batch_trade_off"), y=s.y or "val_loss"))


def _corner(m: Material, s: FigureSpec) -> Figure:
    fit = _fitted(m, "corner")
    return figure_of(corner(draws_of(fit), fit=fit))


def _profiles(m: Material, s: FigureSpec) -> Figure:
    return figure_of(profiles(m.runs, fit=_fitted(m, "profiles")))


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
        names += ["multiplier_forest"] if material.ranking is not None else []
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
