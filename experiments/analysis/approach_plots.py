"""The figures of compute-optimal sizes: IsoFLOP slices with their minima, the envelope, loss contours with the
frontier, and how well laws fitted below a cut predicted what lay above it.

Each function takes what it shows (or a table of runs to work it out from) and an `ax`, and returns the axes; without an
`ax` it makes a figure of its own, with a note under it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.analysis.approaches import Approaches, Name, Surface
from experiments.analysis.axes import ALARM, FAINT, INK, finish, human, label, log_axis, new_figure
from experiments.analysis.envelope import Envelope, envelope
from experiments.analysis.isoflop import IsoFlops, isoflop
from experiments.analysis.observations import Observations, observe
from experiments.analysis.powerline import PowerLine
from experiments.analysis.rollout import Rollout
from experiments.analysis.slices import along
from nanogpt.config import UserError

VIRIDIS = LinearSegmentedColormap.from_list(
    "sizes", list(colormaps["viridis"].resampled(256)(np.linspace(0, 0.9, 256)))
)
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def isoflop_slices(data: IsoFlops | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Loss against size, a colour per compute budget, with the curve through each slice and its minimum.

    Budgets whose lowest loss lies at an edge are drawn hollow and without a minimum. A table of runs is taken as
    `observe` and `isoflop` take it.
    """
    found = isoflop(observe(data)) if isinstance(data, pd.DataFrame) else data
    name = "parabolas" if found.method == "parabola" else "Akima interpolants"
    axes, own = _axes(
        ax, f"Loss at equal compute, {name} and their minima: the best N grows as {_exponent(found.n_line)}"
    )
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
    handles = [
        *(_line(colours[i], f"{_flops(part.flops)} FLOPs", marker="o") for i, part in _some(found.slices)),
        _line(ALARM, "lowest point, 95 % interval", marker="D", ls="--"),
        *(
            [_line(FAINT, f"refused: lowest at an edge ({refused})", marker="o", ls=":", mfc="white")]
            if refused
            else []
        ),
    ]
    kind = "runs trained at these budgets" if found.measured else "losses read between the runs of each size"
    note = f"{len(stand)} of {len(found.table)} budgets with an inner minimum; {_runs(found.observations)}; {kind}; "
    unused = f"; {found.unused} points at computes of fewer than 4 sizes, not drawn" if found.unused else ""
    return _done(axes, own, f"{note}\nnoise {found.noise.words}{unused}", handles, **BESIDE)


def compute_envelope(data: Envelope | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Loss against compute, a line per size, and the lowest of them: solid where smaller and larger sizes did worse."""
    found = envelope(observe(data)) if isinstance(data, pd.DataFrame) else data
    seen = found.observations
    axes, own = _axes(ax, f"Which size is best at each compute: on the envelope N grows as {_exponent(found.n_line)}")
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
    _bar(axes, norm, _size_label(seen))
    handles = [
        _line(ALARM, f"envelope, used ({found.winners} sizes win)", lw=2.4),
    ]
    if found.refused:
        said = f"best size has no rival on one side: refused ({found.refused:.0%})"
        handles.append(_line(INK, said, ls=(0, (1, 1.5))))
    return _done(axes, own, f"{_runs(seen)}; losses joined along each size; noise {found.noise.words}", handles)


def loss_contours(data: Approaches | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The fitted loss over N and D as contours, the runs it was fitted to, and the efficient frontier: the best N and D
    at each compute by the surface, with the minima of approach 2 beside it. UserError where no surface was fitted."""
    from experiments.analysis.approaches import compare_approaches

    found = compare_approaches(data) if isinstance(data, pd.DataFrame) else data
    item = found.get("surface")
    if item is None or not isinstance(item.result, Surface):
        raise UserError(f"loss_contours: {item.refused if item is not None else 'no surface was fitted'}")
    surface, points = item.result, item.result.fit.points
    law = surface.fit.law
    n_name, d_name = law.columns
    n, d = points[n_name].to_numpy(dtype=float), points[d_name].to_numpy(dtype=float)
    title = f"Loss over size and tokens by the {law.title}: along the frontier N grows as {_exponent(surface.n_line)}"
    axes, own = _axes(ax, title)
    grid_n, grid_d = (np.geomspace(values.min() / 1.5, values.max() * 1.5, 120) for values in (n, d))
    mesh = np.meshgrid(grid_n, grid_d)
    losses = law.predict(surface.fit.params, {n_name: mesh[0].ravel(), d_name: mesh[1].ravel()}).reshape(mesh[0].shape)
    measured = points[surface.fit.y].to_numpy(dtype=float)
    levels = np.unique(np.quantile(measured, np.linspace(0.03, 0.97, 10)).round(3))  # where the runs are
    low, high = np.quantile(measured, [0.02, 0.98])
    norm = LogNorm(low, high, clip=True)
    lines = axes.contour(grid_n, grid_d, losses, levels=levels, cmap=VIRIDIS, norm=norm, linewidths=1.1, zorder=1)
    for text in axes.clabel(lines, fontsize=7, fmt="%.3g", inline=False):
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    axes.scatter(n, d, c=measured, cmap=VIRIDIS, norm=norm, s=26, edgecolors="white", linewidths=0.7, zorder=3)
    inside = surface.table[~surface.table["beyond"]]
    axes.plot(surface.table["n"], surface.table["d"], color=ALARM, lw=1.2, ls=":", zorder=4)
    axes.plot(inside["n"], inside["d"], color=ALARM, lw=2.2, zorder=4)
    dotted = " (dotted: beyond the sizes trained)" if len(inside) < len(surface.table) else ""
    handles = [_line(ALARM, f"efficient frontier{dotted}", lw=2.2),
               _line(VIRIDIS(0.5), "a run, coloured by its measured loss", marker="o", ls="")]  # fmt: skip
    handles += _isoflop_minima(axes, found)
    axes.set(xlabel=_size_label(found.observations), ylabel=label("tokens"), xlim=(grid_n[0], grid_n[-1]),
             ylim=(grid_d[0], grid_d[-1]))  # fmt: skip
    log_axis(axes, "x")
    log_axis(axes, "y")
    note = f"{len(points)} runs fitted; contours: loss in nats per token by the fitted law"
    return _done(axes, own, note, handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


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


def rollout_errors(data: Rollout, ax: Axes | None = None) -> Axes:
    """The error of every held-out prediction against how far it reached, a colour per cut, with 95 % intervals."""
    axes, own = _axes(
        ax, f"Laws fitted below {len(data.steps)} cuts, judged by the runs above: held-out error {data.error:.2%}"
    )
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
    handles = [_line(colour, f"{data.by} < {human(cut)}: {counts[cut]} predicted", marker="o", ls="")
               for colour, cut in zip(colours, cuts, strict=True)]  # fmt: skip
    handles.append(_line("#cccccc", "mean absolute error", lw=6))
    bars = "" if np.isnan(data.covered) else f"; bars: 95 % intervals, which hold {data.covered:.0%} of the losses"
    note = (
        f"{data.table['id'].nunique()} runs predicted, {len(data.table)} predictions (moved sideways where equal){bars}"
    )
    return _done(axes, own, note, handles, **BESIDE)


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions that reach equally far are moved sideways, by cut and then by size of the loss, to be told apart."""
    ordered = table.sort_values(["cut", "measured"], kind="stable")
    groups = ordered.groupby(np.log(ordered["beyond"]).round(2))
    rank, size = groups.cumcount(), groups["cut"].transform("size")
    aside = np.where(size > 1, (rank / np.maximum(size - 1, 1) - 0.5) * np.minimum(0.02 * size, 0.5), 0.0)
    return ordered.assign(beyond=ordered["beyond"] * np.exp(aside))


def _axes(ax: Axes | None, title: str) -> tuple[Axes, bool]:
    """The axes to draw in, titled, and whether the figure is ours to annotate."""
    if ax is None:
        return new_figure(title, 8.6, 5.4)[1], True
    ax.set_title(title, loc="left", fontsize=10, color=INK, wrap=True)
    return ax, False


def _done(axes: Axes, own: bool, note: str, handles: Sequence[Line2D], **legend: Any) -> Axes:
    if own:
        finish(axes.figure.get_figure(root=True), axes, note, handles, **legend)
    else:
        axes.legend(handles=handles, fontsize=7, frameon=True, framealpha=0.9, edgecolor="#dddddd")
    return axes


def _line(colour: Any, text: str, **style: Any) -> Line2D:
    return Line2D([], [], color=colour, label=text, ms=5, **{"lw": 1.4, **style})


def _shades(values: Sequence[float]) -> list[Any]:
    """A colour of viridis per value, in order."""
    return [VIRIDIS(i / max(1, len(values) - 1)) for i in range(len(values))]


def _some(parts: Sequence[Any]) -> list[tuple[int, Any]]:
    """At most nine of a row, the ends among them: a legend of every budget would crowd the figure."""
    chosen = range(len(parts)) if len(parts) <= 9 else np.unique(np.linspace(0, len(parts) - 1, 7).round().astype(int))
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


def _bar(axes: Axes, norm: LogNorm, text: str) -> None:
    from matplotlib.cm import ScalarMappable

    bar = axes.figure.colorbar(ScalarMappable(norm=norm, cmap=VIRIDIS), ax=axes, label=text, pad=0.01)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
