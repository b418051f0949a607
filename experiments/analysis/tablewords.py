"""A law fitted to somebody's table, as printed: what was read, the law, its error on unseen rows, what it allocates
and predicts, and the details to report."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import intervals
from experiments.analysis.checklist import checklist, checklist_text
from experiments.analysis.fitted import Fit
from experiments.analysis.frontier import compute_optimal, no_optimum
from experiments.analysis.laws import Chinchilla
from experiments.analysis.tablefit import Prepared, TableFit

BEYOND = (1.0, 10.0, 100.0)  # times the largest compute: where optimal sizes are quoted
MOST_LINES = 8


def table_text(done: TableFit, points: pd.DataFrame | None = None) -> str:
    """Everything, in the order in which a reader needs it."""
    parts = [read_text(done.prepared), law_text(done.fit), dropped_text(done.fit.dropped)]
    parts += [f"warning: {each}" for each in done.prepared.warnings]
    parts.append("\n".join([*([done.rollout.sentence()] if done.rollout is not None else []), *done.problems]))
    parts.append(holdout_text(done) if done.holdout is not None else "")
    parts.append(allocation_text(done.fit, done.prepared))
    parts.append(prediction_text(done.fit, points) if points is not None and len(points) else "")
    parts.append("to report with these numbers ([ ]: only you can say)\n"
                 + checklist_text(checklist(done.fit, done.rollout)))  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def read_text(prepared: Prepared) -> str:
    """Which column stands for what."""
    named = ", ".join(f"{symbol} = {source}" for symbol, source in prepared.sources.items())
    return f"{prepared.path}: {len(prepared.rows) + len(prepared.dropped)} rows; {named}"


def law_text(fit: Fit) -> str:
    """The summary with standard errors beside the intervals."""
    head, *rest = fit.summary().splitlines()
    if not len(fit.draws):
        return "\n".join([head, *rest])
    errors = {name: f" se {error:.4g}" for name, error in fit.stderr.items()}
    said = [_with_error(line, errors) for line in rest]
    return "\n".join([head, *said])


def _with_error(line: str, errors: dict[str, str]) -> str:
    """The line of a parameter with its standard error; other lines as they are."""
    name = line.split()[0] if line.split() else ""
    if name in errors and "[" in line and not line.startswith("  note"):
        before, bracket, after = line.partition(" [" if "] " not in name else "[")
        return f"{before}{errors[name]:<14}{bracket}{after}"
    return line


def dropped_text(dropped: pd.DataFrame) -> str:
    """Every reason with the lines it took."""
    lines = []
    for reason, part in dropped.groupby("reason", sort=False):
        named = ", ".join(str(each).removeprefix("line ") for each in part["id"][:MOST_LINES])
        more = f" and {len(part) - MOST_LINES} more" if len(part) > MOST_LINES else ""
        lines.append(f"  dropped {len(part)}: {reason} (line{'s' * (len(part) != 1)} {named}{more})")
    return "\n".join(lines)


def holdout_text(done: TableFit) -> str:
    """The rows above the cut asked for: measured beside predicted."""
    held = done.holdout
    assert held is not None
    rows = [
        f"  {row['id']:<10} measured {row['measured']:.4f}  predicted {row['predicted']:.4f}  "
        f"{intervals.text(row['lower'], row['upper'], '{:.4f}')}  error {row['error']:+.4%}"
        for row in held.table.to_dict(orient="records")
    ]
    return "\n".join([
        f"held out: {held.by} >= {held.cut:.4g}, predicted by the law fitted to the {len(held.fit.points)} rows below; "
        f"mean error {held.mean_error:.4%}, largest {held.max_error:.4%}, {held.reach:.3g} times beyond",
        *rows, *([f"the intervals: {held.misfit}"] if held.misfit else []),
    ])  # fmt: skip


def allocation_text(fit: Fit, prepared: Prepared) -> str:
    """The best N and D of a Chinchilla law at the largest compute and beyond; nothing for other laws."""
    if not isinstance(fit.law, Chinchilla):
        return ""
    if (reason := no_optimum(fit)) is not None:
        return f"no compute-optimal N and D: {reason}"
    largest = float((6.0 * prepared.rows["N"] * prepared.rows["D"]).max())
    best = compute_optimal(fit, np.array(BEYOND) * largest)
    exponent = f"N ~ C^{best.a:.4f}, D ~ C^{best.b:.4f}"
    if len(fit.draws):
        drawn = fit.draws["beta"] / (fit.draws["alpha"] + fit.draws["beta"])
        low, high = np.percentile(drawn, [2.5, 97.5])
        exponent += f" (exponent of N: se {drawn.std(ddof=1):.4f}, 95 % {low:.4f} to {high:.4f})"
    lines = [_allocated(row, times) for row, times in zip(best.table.to_dict(orient="records"), BEYOND, strict=True)]
    return "\n".join([f"compute-optimal at C = 6 N D: {exponent}", *lines])


def _allocated(row: Mapping[Hashable, Any], times: float) -> str:
    between = (
        f" [{row['n_lower']:.3g}, {row['n_upper']:.3g}]" if "n_lower" in row else "",
        f" [{row['d_lower']:.3g}, {row['d_upper']:.3g}]" if "d_lower" in row else "",
    )
    where = "largest fitted" if times == 1 else f"{times:g} x beyond"
    return (f"  C {row['flops']:.3g} ({where}): N {row['n']:.4g}{between[0]}, D {row['d']:.4g}{between[1]}, "
            f"D/N {row['d'] / row['n']:.3g}, loss {row['loss']:.4f}")  # fmt: skip


def prediction_text(fit: Fit, points: pd.DataFrame) -> str:
    """The loss at each point asked for, and how far outside the fitted rows it lies."""
    said = fit.predict(points)
    lines = []
    for (_, point), (_, row) in zip(points.iterrows(), said.iterrows(), strict=True):
        asked = ", ".join(f"{name} {_say(value)}" for name, value in point.items() if not _empty(value))
        band = intervals.text(row["lower"], row["upper"], "{:.4f}")
        lines.append(f"  {asked}: loss {row['predicted']:.4f} {band}{_outside(fit, point)}")
    return "\n".join(["predicted loss of one new run, 95 % interval if the form holds that far", *lines])


def _empty(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _say(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _outside(fit: Fit, point: "pd.Series[Any]") -> str:
    """How many times beyond the fitted values each input lies."""
    beyond = []
    for name in fit.law.columns:
        low, high, value = fit.points[name].min(), fit.points[name].max(), float(point[name])
        if not low <= value <= high:
            times = value / high if value > high else low / value
            beyond.append(f"{name} {times:.3g} x {'above' if value > high else 'below'} the fitted")
    return f"; {', '.join(beyond)}" if beyond else ""


def as_data(done: TableFit, points: pd.DataFrame | None = None) -> dict[str, Any]:
    """The same for programs, ready for JSON."""
    fit = done.fit
    data: dict[str, Any] = {
        "table": done.prepared.path, "columns": dict(done.prepared.sources), "fit": fit.to_dict(done.rollout),
        "warnings": list(done.prepared.warnings), "problems": list(done.problems),
        "rollout": done.rollout.to_dict() if done.rollout is not None else None,
        "holdout": done.holdout.to_dict() if done.holdout is not None else None,
    }  # fmt: skip
    data["checklist"] = data["fit"].pop("checklist")
    if isinstance(fit.law, Chinchilla):
        data["compute_optimal"] = _allocation_data(fit, done.prepared)
    if points is not None and len(points):
        rows = points.join(fit.predict(points)).astype(object)
        data["predictions"] = rows.where(rows.notna(), None).to_dict(orient="records")
    return data


def _allocation_data(fit: Fit, prepared: Prepared) -> dict[str, Any]:
    """The exponents and the table, or the reason for which there are none."""
    if (reason := no_optimum(fit)) is not None:
        return {"refused": reason}
    largest = float((6.0 * prepared.rows["N"] * prepared.rows["D"]).max())
    best = compute_optimal(fit, np.array(BEYOND) * largest)
    return {"a": best.a, "b": best.b, "table": best.table.to_dict(orient="records")}
