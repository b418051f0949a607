"""The figures of compute-optimal sizes: IsoFLOP slices with their minima, the envelope, loss contours with the
frontier, and how well laws fitted below a cut predicted what lay above it.

Each function takes a table of runs and an `ax`, and returns the axes; without an `ax` it makes a figure of its own,
with a note under it. What it shows is worked out from the table, or given by keyword where that has been done.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import ContourSet
from matplotlib.lines import Line2D

from experiments.analysis.approaches import Approaches, Name, Surface, fit_surface
from experiments.analysis.axes import ALARM, FAINT, INK, VIRIDIS, done, label, palette, place
from experiments.analysis.contract import figure
from experiments.analysis.envelope import Envelope
from experiments.analysis.envelope import envelope as find_envelope
from experiments.analysis.fitted import Fit
from experiments.analysis.isoflop import IsoFlops, Method, isoflop
from experiments.analysis.laws import Chinchilla
from experiments.analysis.layout import Sizes
from experiments.analysis.observations import Accounting, Observations, observe
from experiments.analysis.powerline import PowerLine
from experiments.analysis.rollout import Rollout
from experiments.analysis.rollout import rollout as roll_out
from experiments.analysis.slices import along
from experiments.analysis.ticks import alike, log_axis
from nanogpt.config import UserError


def _observed(df: pd.DataFrame, n: str | None) -> Observations:
    """The table's runs, sizes counted by column `n` (default: without embeddings where the table says), compute as
    spent where the table has it."""
    size = n or ("n_params_non_embedding" if "n_params_non_embedding" in df.columns else "n_params")
    return observe(df, Accounting(size, "exact" if "flops" in df.columns else "6ND"))


@figure
def isoflop_slices(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    found: IsoFlops | None = None,
    method: Method = "akima",
    n: str | None = None,
) -> Axes:
    """Loss against size, a colour per compute budget, with the curve through each slice and its minimum.

    Budgets whose lowest loss lies at an edge are drawn hollow and without a minimum. `found`: what `isoflop` made of
    the table; by default it is called with `method` and the sizes in column `n`.
    """
    found = isoflop(_observed(df, n), method) if found is None else found
    name = "parabolas" if found.method == "parabola" else "Akima interpolants"
    title = f"Loss at equal compute, {name} and their minima: the best N grows as {_exponent(found.n_line)}"
    _, axes = place(ax, title, 8.6, 5.4)
    colours = _shades([part.flops for part in found.slices])
    for i, (part, row) in enumerate(zip(found.slices, found.table.to_dict(orient="records"), strict=True)):
        stands = row["refused"] == ""
        axes.plot(part.n, part.loss, "o", ms=4.5, color=colours[i], mfc=colours[i] if stands else "white", zorder=3)
        axes.plot(*found.curve(i), color=colours[i], lw=1.2, ls="-" if stands else ":", zorder=2)
        if stands:
            axes.plot([row["n_lower"], row["n_upper"]], [row["loss"]] * 2, color=INK, lw=1.6, zorder=5)
            axes.plot(row["n"], row["loss"], "D", ms=6, color=ALARM, mec="white", mew=0.8, zorder=6)
    stand = found.table[found.table["refused"] == ""]
    axes.plot(found.n_line.at(stand["flops"].to_numpy()), stand["loss"], color=ALARM, lw=1, ls="--", zorder=4)
    axes.set(xlabel=_size_label(found.observations), ylabel="loss (nats/token)")
    log_axis(axes, "x")
    log_axis(axes, "y")
    refused = len(found.table) - len(stand)
    budgets = _some(found.slices, Sizes.of(axes).entries)
    handles = [_line(colours[i], f"{_flops(part.flops)} FLOPs", marker="o") for i, part in budgets]
    handles.append(_line(ALARM, "lowest point, 95 % interval", marker="D", ls="--"))
    if refused:
        handles.append(_line(FAINT, f"lowest at an edge: refused ({refused})", marker="o", ls=":", mfc="white"))
    kind = "runs trained at these budgets" if found.measured else "losses read between the runs of each size"
    note = f"{len(stand)} of {len(found.table)} budgets with an inner minimum; {_runs(found.observations)}; {kind}; "
    unused = f"; {found.unused} points at computes of fewer than 4 sizes, not drawn" if found.unused else ""
    return done(axes, ax, f"{note}\nnoise {found.noise.words}{unused}", handles)


@figure
def compute_envelope(
    df: pd.DataFrame, ax: Axes | None = None, *, found: Envelope | None = None, n: str | None = None
) -> Axes:
    """Loss against compute, a line per size, and the lowest of them: solid where smaller and larger sizes did worse.

    `found`: what `envelope` made of the table; by default it is called with the sizes in column `n`.
    """
    found = find_envelope(_observed(df, n)) if found is None else found
    seen = found.observations
    title = f"Which size is best at each compute: on the envelope N grows as {_exponent(found.n_line)}"
    _, axes = place(ax, title, 8.6, 5.4)
    norm = LogNorm(seen.sizes.min(), seen.sizes.max())
    for _, path in seen.table.sort_values("flops").groupby("path"):
        colour, flops = VIRIDIS(norm(path["n"].iloc[0])), path["flops"].to_numpy(dtype=float)
        if seen.source == "runs":
            axes.plot(flops, path["loss"], "o", ms=3.5, color=colour, zorder=2)
        fine = np.geomspace(flops[0], flops[-1], 200)
        axes.plot(fine, along(flops, path["loss"].to_numpy(dtype=float)[None], fine)[0], lw=1, color=colour, zorder=2)
    rows = found.table
    inside = rows["inside"].to_numpy(dtype=bool)
    axes.plot(rows["flops"], rows["loss"].where(inside), color=ALARM, lw=2.4, zorder=4)
    axes.plot(rows["flops"], rows["loss"].where(~inside), color=INK, lw=1.4, ls=(0, (1, 1.5)), zorder=4)
    axes.set(xlabel=label("flops") if seen.accounting.compute == "exact" else "training compute, 6 N D (FLOPs)",
             ylabel="loss (nats/token)")  # fmt: skip
    top = float(np.nanquantile(seen.table["loss"], 0.9 if seen.source == "curves" else 1.0))
    axes.set_ylim(float(seen.table["loss"].min()) * 0.98, top * 1.02)
    log_axis(axes, "x")
    log_axis(axes, "y")
    sizes = palette(seen.table.rename(columns={"n": seen.accounting.n}), seen.accounting.n)
    handles = [*sizes.handles(axes), _line(ALARM, f"envelope, used ({found.winners} sizes win)", lw=2.4)]
    if found.refused:
        handles.append(_line(INK, f"best size at an edge: refused ({found.refused:.0%})", ls=(0, (1, 1.5))))
    return done(axes, ax, f"{_runs(seen)}; losses joined along each size; noise {found.noise.words}", handles)


@figure
def loss_contours(
    df: pd.DataFrame,
    ax: Axes | None = None,
    *,
    fit: Fit | None = None,
    approaches: Approaches | None = None,
    n: str | None = None,
) -> Axes:
    """The fitted loss over N and D as contours, the runs it was fitted to, and the efficient frontier: the best N and D
    at each compute by the surface. `fit`: a Chinchilla law of this table, fitted here by default with the sizes in
    column `n`. `approaches`: what `compare_approaches` made of the table; the minima of approach 2 are drawn, too.
    UserError where no surface can be fitted."""
    surface, seen = _given_surface(approaches) if approaches is not None else _own_surface(df, fit, n)
    law, points = surface.fit.law, surface.fit.points
    n_name, d_name = law.columns
    sizes, tokens = points[n_name].to_numpy(dtype=float), points[d_name].to_numpy(dtype=float)
    title = f"Loss over size and tokens by the {law.title}: along the frontier N grows as {_exponent(surface.n_line)}"
    _, axes = place(ax, title, 8.6, 5.4)
    axes.grid(False)
    grid_n, grid_d = (np.geomspace(values.min() / 1.5, values.max() * 1.5, 120) for values in (sizes, tokens))
    mesh = np.meshgrid(grid_n, grid_d)
    losses = law.predict(surface.fit.params, {n_name: mesh[0].ravel(), d_name: mesh[1].ravel()}).reshape(mesh[0].shape)
    measured = points[surface.fit.y].to_numpy(dtype=float)
    levels = np.unique(np.quantile(measured, np.linspace(0.03, 0.97, min(8, Sizes.of(axes).entries + 2))).round(3))
    low, high = np.quantile(measured, [0.02, 0.98]).tolist()
    norm = LogNorm(low, high, clip=True)
    axes.set(xlabel=_size_label(seen), ylabel=label(d_name), xlim=(grid_n[0], grid_n[-1]), ylim=(grid_d[0], grid_d[-1]))
    log_axis(axes, "x")
    log_axis(axes, "y")
    lines = axes.contour(grid_n, grid_d, losses, levels=levels, cmap=VIRIDIS, norm=norm, linewidths=1.1, zorder=1)
    _name_contours(axes, lines)
    axes.scatter(sizes, tokens, c=measured, cmap=VIRIDIS, norm=norm, s=26, edgecolors="white", linewidths=0.7, zorder=3)
    inside = surface.table[~surface.table["beyond"]]
    frontier, said = (inside, "") if len(inside) > 1 else (surface.table, ", beyond the sizes trained")
    axes.plot(frontier["n"], frontier["d"], color=ALARM, lw=2.2, zorder=4)
    handles = [_line(ALARM, f"efficient frontier{said}", lw=2.2),
               _line(VIRIDIS(0.5), "a run, coloured by its loss", marker="o", ls="")]  # fmt: skip
    handles += _isoflop_minima(axes, approaches) if approaches is not None else []
    note = f"{len(points)} runs fitted; contours: loss in nats per token by the fitted law"
    return done(axes, ax, note, handles)


def _given_surface(approaches: Approaches) -> tuple[Surface, Observations]:
    item = approaches.get("surface")
    if item is None or not isinstance(item.result, Surface):
        raise UserError(f"loss_contours: {item.refused if item is not None else 'no surface was fitted'}")
    return item.result, approaches.observations


def _own_surface(df: pd.DataFrame, fit: Fit | None, n: str | None) -> tuple[Surface, Observations]:
    """The surface of this table, by the law that was given or one fitted here."""
    if fit is not None and (not isinstance(fit, Fit) or not isinstance(fit.law, Chinchilla)):
        found = fit.law.name if isinstance(fit, Fit) else type(fit).__name__
        raise UserError(f"loss_contours: needs a fit of the law chinchilla, found {found}")
    seen = _observed(df, fit.law.columns[0] if fit is not None else n)
    d, y = (fit.law.columns[1], fit.y) if fit is not None else ("tokens", "val_loss")
    return fit_surface(df, seen, {"d": d, "y": y, "where": None}, {}, fit), seen


def _name_contours(axes: Axes, lines: ContourSet) -> None:
    """The loss beside every contour, at its upper left end: there the law rises, and the runs leave a margin."""
    width = axes.transAxes.inverted()
    for level, parts in zip(lines.levels, lines.allsegs, strict=True):
        long = max((part for part in parts if len(part) > 1), key=len, default=None)
        if long is None:
            continue
        places = width.transform(axes.transData.transform(long))
        inner = places[(places[:, 1] < 0.955) & (places[:, 0] > 0.06)]
        at = inner[np.argmax(inner[:, 1] - inner[:, 0])] if len(inner) else places[0]
        x, y = axes.transData.inverted().transform(axes.transAxes.transform(at))
        axes.text(x, y, f"{level:.3g}", fontsize=Sizes.of(axes).tick - 0.5, color=INK, ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=2)  # fmt: skip


def _isoflop_minima(axes: Axes, found: Approaches) -> list[Line2D]:
    """The minima of approach 2 under the study's own accounting, where there are any."""
    handles = []
    marks: tuple[tuple[Name, str, str], ...] = (("parabola", "D", "parabolas"), ("akima", "^", "Akima"))
    for name, marker, said in marks:
        item = found.get(name)
        if item is not None and isinstance(item.result, IsoFlops):
            stand = item.result.table[item.result.table["refused"] == ""]
            axes.plot(stand["n"], stand["d"], marker, ms=6, mfc="white", mec=INK, mew=1.2, ls="", zorder=5)
            handles.append(_line(INK, f"IsoFLOP minima, {said}", marker=marker, ls="", mfc="white"))
    return handles


@figure
def rollout_errors(
    df: pd.DataFrame, ax: Axes | None = None, *, rollout: Rollout | None = None, law: str = "chinchilla"
) -> Axes:
    """The error of every held-out prediction against how far it reached, a colour per cut, with 95 % intervals.

    `rollout`: the cuts with what was predicted above them; by default `law` is fitted below five cuts of `df`.
    """
    data = roll_out(law, df) if rollout is None else rollout
    title = f"Laws fitted below {len(data.steps)} cuts, judged by the runs above: held-out error {data.error:.2%}"
    _, axes = place(ax, title, 8.6, 5.4)
    cuts = sorted(data.table["cut"].unique())
    colours = _shades(cuts)
    axes.axhline(0.0, color=INK, lw=1)
    axes.axhspan(-100 * data.error, 100 * data.error, color="#000000", alpha=0.07, lw=0, zorder=0)
    spread = _apart(data.table)
    for colour, cut in zip(colours, cuts, strict=True):
        part = spread[spread["cut"] == cut]
        error = 100 * part["error"].to_numpy(dtype=float)
        bounds = 100 * (part[["lower", "upper"]].to_numpy(dtype=float).T / part["measured"].to_numpy(dtype=float) - 1)
        if np.isfinite(bounds).all():
            axes.vlines(part["beyond"], *bounds, color=colour, lw=1.1, alpha=0.6)
        axes.plot(part["beyond"], error, "o", ms=5, color=colour, mec="white", mew=0.6, zorder=3)
    axes.set(xlabel=f"{data.by} of the run, as a multiple of the largest fitted", ylabel="predicted above measured (%)")
    log_axis(axes, "x")
    counts = data.table["cut"].value_counts()
    handles = [_line(colour, f"{data.by} < {said}: {counts[cut]} predicted", marker="o", ls="")
               for colour, cut, said in zip(colours, cuts, alike(cuts, data.by), strict=True)]  # fmt: skip
    handles.append(_line("#cccccc", "mean absolute error", lw=6))
    bars = "" if np.isnan(data.covered) else f"; bars: 95 % intervals, which hold {data.covered:.0%} of the losses"
    note = (
        f"{data.table['id'].nunique()} runs predicted, {len(data.table)} predictions (moved sideways where equal){bars}"
    )
    return done(axes, ax, note, handles)


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions that reach equally far are moved sideways, by cut and then by size of the loss, to be told apart."""
    ordered = table.sort_values(["cut", "measured"], kind="stable")
    groups = ordered.groupby(np.log(ordered["beyond"]).round(2))
    rank, size = groups.cumcount(), groups["cut"].transform("size")
    aside = np.where(size > 1, (rank / np.maximum(size - 1, 1) - 0.5) * np.minimum(0.02 * size, 0.5), 0.0)
    return ordered.assign(beyond=ordered["beyond"] * np.exp(aside))


def _line(colour: Any, text: str, **style: Any) -> Line2D:
    return Line2D([], [], color=colour, label=text, ms=5, **{"lw": 1.4, **style})


def _shades(values: Sequence[float]) -> list[Any]:
    """A colour of viridis per value, in order."""
    return [VIRIDIS(i / max(1, len(values) - 1)) for i in range(len(values))]


def _some(parts: Sequence[Any], most: int) -> list[tuple[int, Any]]:
    """At most so many of a row, the ends among them: a legend of every budget would crowd the figure."""
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(most, len(parts))).round().astype(int))
    return [(int(i), parts[int(i)]) for i in chosen]


def _exponent(line: PowerLine) -> str:
    low, high = line.conf_int()
    return f"$C^{{{line.exponent:.3f}}}$" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else "")


def _flops(value: float) -> str:
    return f"{value:.2g}".replace("e+", "e")


def _size_label(seen: Observations) -> str:
    return label(seen.accounting.n)


def _runs(seen: Observations) -> str:
    """How many observations of how many sizes stand behind a figure."""
    averaged = f", averaged over seeds to {len(seen.table)} points" if len(seen.table) < seen.runs else ""
    return f"{seen.runs} runs of {len(seen.sizes)} sizes{averaged if seen.source == 'runs' else ', their curves'}"
