"""The report of a study: report.html (one self-contained file), report.md, table.csv and figures/, from plain data.

Nothing here reads a study or a run folder: the caller hands over the study's words, the table of runs and their curves.
The same input gives the same bytes, and every file is replaced in one step.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.analysis.spec import (
    check_approaches_spec,
    check_compare_spec,
    check_fit_spec,
    check_optimum_spec,
    check_report_spec,
)
from nanogpt.config import UserError, os_reason
from nanogpt.record import replacing

if TYPE_CHECKING:  # pandas and matplotlib take seconds to import, and only a report needs them
    import pandas as pd

    from experiments.analysis.checklist import Item
    from experiments.analysis.figures import Drawn
    from experiments.analysis.findings import Analysis
    from experiments.analysis.fitted import Fit
    from experiments.analysis.searched import Searched

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MAX_FACTORS = 8  # columns of varied factors shown in the report; table.csv has them all


@dataclass(frozen=True)
class StudyMeta:
    """What a report says of a study beside its numbers: its words, its `fit:`, `optimum:`, `approaches:`, `claims:` and
    `report:`, how to repeat it. `late_claims`: those that were written after the runs were locked."""

    name: str
    question: str = ""
    hypothesis: str = ""
    limits: str = ""
    fit: Mapping[str, Any] | None = None
    optimum: Mapping[str, Any] | None = None
    approaches: Mapping[str, Any] | None = None
    compare: Mapping[str, Any] | None = None
    claims: tuple[str, ...] = ()
    late_claims: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    searched: "Searched | None" = None


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    markdown: Path
    table: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class Grid:
    """A table as text: column heads, and rows of cells."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def analyse(meta: StudyMeta, runs: "pd.DataFrame", curves: "pd.DataFrame | None" = None) -> "Analysis":
    """The fit, held-out prediction, optima, approaches and claims of a study, as its sections ask; UserError on a bad
    section. `curves`, as for `write_report`, are read by `approaches:` and by claims about the training itself.


    Too few finished runs, or a column the table lacks, do not raise: the Analysis says so in `problems`.
    """
    from experiments.analysis.findings import analyse_table, with_claims
    from experiments.analysis.statements import parse_claims

    spec = check_fit_spec(meta.fit, f"{meta.name}: fit") if meta.fit is not None else None
    optimum = check_optimum_spec(meta.optimum, f"{meta.name}: optimum") if meta.optimum is not None else None
    y = check_report_spec(meta.report, f"{meta.name}: report").y
    place = f"{meta.name}: approaches"
    approaches = check_approaches_spec(meta.approaches, place) if meta.approaches is not None else None
    compare = check_compare_spec(meta.compare, f"{meta.name}: compare") if meta.compare is not None else None
    runs = runs.infer_objects()
    found = analyse_table(spec, runs, y, optimum, meta.searched, approaches, curves, compare)
    return with_claims(found, parse_claims(meta.claims, f"{meta.name}: claims"), runs, curves)


def print_analysis(analysis: "Analysis") -> str:
    """The text block for a terminal: the law, measured beside predicted, E beside the entropy, optima, what fails."""
    from experiments.analysis.findings import analysis_text

    return analysis_text(analysis)


def write_report(
    folder: Path | str,
    meta: StudyMeta,
    runs: "pd.DataFrame",
    curves: "pd.DataFrame | None" = None,
    analysis: "Analysis | None" = None,
) -> ReportPaths:
    """Write report.html, report.md, table.csv and figures/ into `folder`; returns where they are.

    `runs`: a row per run, failed and diverged too. `curves`: long table of id, step, tokens, flops, losses, factors.
    Raises UserError on a bad `report:` section or a folder that cannot be written.
    """
    from experiments.analysis.figures import Material, chosen_figures, draw_all

    runs = runs.infer_objects()  # a table of records with gaps comes as objects, and numbers must be drawn as numbers
    analysis = analysis if analysis is not None else analyse(meta, runs, curves)
    material = Material(
        runs, curves, analysis.fit, analysis.holdout, analysis.optima, meta.searched, analysis.rollout,
        analysis.approaches, analysis.ranking,
    )  # fmt: skip
    spec = check_report_spec(meta.report, f"{meta.name}: report")
    drawn = draw_all(chosen_figures(spec, material), material)
    content = _content(meta, runs, analysis, drawn)
    folder = Path(folder)
    figures = []
    for figure in drawn:
        if figure.problem is None:
            figures += [_write(folder / "figures" / f"{figure.name}.png", figure.png)]
            figures += [_write(folder / "figures" / f"{figure.name}.svg", figure.svg.encode())]
    return ReportPaths(
        html=_write(folder / "report.html", _render("report.html.j2", content).encode()),
        markdown=_write(folder / "report.md", _render("report.md.j2", content).encode()),
        table=_write(folder / "table.csv", _csv(runs)),
        figures=tuple(figures),
    )


def _write(path: Path, data: bytes) -> Path:
    """Replace a file in one step, so that a reader never meets half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({os_reason(error, path)})") from error
    return path


def _csv(runs: "pd.DataFrame") -> bytes:
    """The whole table, but for columns that hold objects (they stay in the records)."""
    plain = [name for name in runs.columns if not runs[name].map(lambda cell: isinstance(cell, Mapping | list)).any()]
    return runs[plain].to_csv(index=False, lineterminator="\n").encode()


def _render(template: str, content: Mapping[str, Any]) -> str:
    """A template of this package filled in; HTML is escaped everywhere, Markdown through the `cell` filter."""
    import jinja2

    folder = Path(__file__).parent / "templates"
    html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=html, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(template).render(**content)


def _markdown_cell(text: object) -> str:
    """Text that cannot open a tag, a column, a link or a line in Markdown."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|`*[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def _content(meta: StudyMeta, runs: "pd.DataFrame", analysis: "Analysis", drawn: "tuple[Drawn, ...]") -> dict[str, Any]:
    """Everything the templates show, as text."""
    from markupsafe import Markup, escape

    from experiments.analysis.saving import inline_svg

    figures = [
        {
            "name": figure.name,
            "caption": figure.caption,
            "problem": figure.problem,
            "svg": Markup(inline_svg(figure.svg, f"figure-{i}", str(escape(figure.caption)))) if figure.svg else "",
        }
        for i, figure in enumerate(drawn, 1)
    ]
    return {
        "meta": meta,
        "policy": CONTENT_POLICY,
        "claims": analysis.claims,
        "judged": analysis.judged,
        "problems": analysis.problems,
        "figures": figures,
        "held_out": _held_out_grid(analysis),
        "rollout": _grid(analysis.rollout.words()) if analysis.rollout is not None else None,
        "approaches": _approaches_grid(analysis),
        "approaches_notes": _approaches_notes(analysis),
        "ranking": _ranking_grid(analysis),
        "ranking_notes": _ranking_notes(analysis),
        "optima": _optima_grid(analysis),
        "optima_notes": _optima_notes(analysis),
        "checklists": _checklists(analysis),
        "to_report": _to_report(analysis),
        "runs": _runs_grid(runs, analysis),
        "states": _states(runs),
        "cost": _cost(runs),
        "environment": _environment(meta, runs),
    }


def _held_out_grid(analysis: "Analysis") -> Grid | None:
    """Measured beside predicted, one row per held-out run."""
    from experiments.analysis.findings import held_out_rows

    if analysis.holdout is None:
        return None
    table = held_out_rows(analysis.holdout)
    rows = tuple(
        (
            str(row["run"]), _number(row[analysis.holdout.by]), f"{row['measured']:.4f}", f"{row['predicted']:.4f}",
            _between(row["lower"], row["upper"], "{:.4f}"), f"{row['error']:+.2%}", "yes" if row["inside"] else "no",
        )
        for row in table.to_dict(orient="records")
    )  # fmt: skip
    heads = ("run", analysis.holdout.by, "measured", "predicted", "95 % interval", "error", "inside")
    return Grid(heads, rows)


def _optima_grid(analysis: "Analysis") -> Grid | None:
    """The optimum, its drift and its regret, one row per panel and size."""
    from experiments.analysis.transfer import transfer_table

    if analysis.optima is None:
        return None
    return _grid(transfer_table(analysis.optima))


def _grid(table: "pd.DataFrame") -> Grid:
    """A table that holds text already."""
    return Grid(tuple(table.columns), tuple(tuple(row) for row in table.to_numpy()))


def _approaches_grid(analysis: "Analysis") -> Grid | None:
    """Compute-optimal sizes, one row per approach and way of counting."""
    from experiments.analysis.approach_words import approach_table

    return _grid(approach_table(analysis.approaches)) if analysis.approaches is not None else None


def _approaches_notes(analysis: "Analysis") -> tuple[str, ...]:
    from experiments.analysis.approach_words import approach_notes

    return approach_notes(analysis.approaches) if analysis.approaches is not None else ()


def _ranking_grid(analysis: "Analysis") -> Grid | None:
    """The variants, the best first."""
    from experiments.analysis.ranking import ranking_table

    return _grid(ranking_table(analysis.ranking)) if analysis.ranking is not None else None


def _ranking_notes(analysis: "Analysis") -> tuple[str, ...]:
    from experiments.analysis.ranking import ranking_notes

    return ranking_notes(analysis.ranking) if analysis.ranking is not None else ()


def _optima_notes(analysis: "Analysis") -> tuple[str, ...]:
    from experiments.analysis.transfer import table_notes

    return table_notes(analysis.optima) if analysis.optima is not None else ()


def _checklists(analysis: "Analysis") -> list[dict[str, Any]]:
    """What a reader needs to judge each fit: one block for the fit on all runs, one for the fit below the cut."""
    fits = [("fitted to all finished runs", analysis.fit)]
    if analysis.holdout is not None:
        fits.append(("fitted to the smaller runs, for the held-out prediction", analysis.holdout.fit))
    return [_checklist(title, result) for title, result in fits if result is not None]


def _checklist(title: str, result: "Fit") -> dict[str, Any]:
    found, stderr = result.conf_int().to_numpy(), result.stderr
    parameters = tuple(
        (name, f"{value:.5g}", _between(low, high, "{:.4g}"), _known(stderr[name]), result.law.unit(name))
        for (name, value), (low, high) in zip(result.params.items(), found, strict=True)
    )
    loss = f"Huber with delta = {result.delta:g}" if result.loss == "huber" else result.loss.upper()
    by = f"clusters of equal {result.cluster}" if result.cluster else "runs"
    drawn = f"{len(result.draws)} {result.resample}-bootstrap resamples of {by}, seed {result.seed}"
    share = f"{result.draws_converged:.0%} converged"
    items = [
        ("law", f"{result.y} = {result.law.formula} ({result.law.source})"),
        ("loss", f"{loss} on {result.target}, summed over the points: {result.objective:.6g}"),
        ("convergence", result.reason),
        ("starts", f"{result.starts_agreeing} of {result.starts} starts reached the same optimum"),
        ("condition number", f"{result.condition:.2g} (of J'J, logarithms, centred)"),
        ("intervals", "95 % profile likelihood" if result.method == "profile"
                      else f"95 % percentile over {drawn}, {share}" if len(result.draws) else "none: no bootstrap"),
        ("points used", str(len(result.points))),
        ("points dropped", _dropped(result)),
    ]  # fmt: skip
    heads = ("parameter", "value", "95 % interval", "standard error", "unit")
    return {"title": title, "parameters": Grid(heads, parameters), "checks": items, "notes": result.notes}


def _between(low: float, high: float, form: str) -> str:
    """The ends of an interval, or that there is none."""
    return "none" if math.isnan(low) or math.isnan(high) else f"{form.format(low)} to {form.format(high)}"


def _known(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3g}"


def _to_report(analysis: "Analysis") -> "list[Item]":
    """The details that a paper must report of the fit on all runs; nothing without one."""
    from experiments.analysis.checklist import checklist

    return checklist(analysis.fit, analysis.rollout) if analysis.fit is not None else []


def _dropped(result: "Fit") -> str:
    """How many points were left out, and why."""
    reasons = result.dropped["reason"].value_counts().sort_index()
    return "; ".join(f"{number}: {reason}" for reason, number in reasons.items()) or "none"


def _runs_grid(runs: "pd.DataFrame", analysis: "Analysis") -> Grid:
    """Every run, in the order given, with its state, varied factors, size and loss."""
    from experiments.analysis.columns import varied_factors

    factors = [name for name in varied_factors(runs) if not _is_measured(runs, name)][:MAX_FACTORS]
    loss = analysis.spec.y if analysis.spec is not None else "val_loss"
    numbers = ("val_loss", "n_params", "n_params_non_embedding", "tokens", "flops", "wall_seconds")
    errors = ["error"] if "error" in runs.columns and runs["error"].notna().any() else []
    wanted = dict.fromkeys(("trial", "label", "status", "seed", loss, *factors, *numbers, "id", *errors))
    names = [name for name in wanted if name in runs.columns]
    rows = tuple(tuple(_cell(name, row[name]) for name in names) for row in runs.to_dict(orient="records"))
    heads = tuple(str(name).rpartition(".")[2] for name in names)
    return Grid(heads, rows)


def _is_measured(runs: "pd.DataFrame", factor: str) -> bool:
    """Whether a measured column says the same as a factor, as `tokens` does of `train.tokens`."""
    leaf = factor.rpartition(".")[2]
    return leaf in runs.columns and bool((runs[leaf].isna() | (runs[leaf] == runs[factor])).all())


def _cell(name: Any, value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(str(value[key]) for key in ("class", "message") if value.get(key))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if name in ("seed", "trial"):
        return str(int(value))
    return f"{value:.4f}" if str(name).endswith("loss") and math.isfinite(value) else _number(value)


def _number(value: Any) -> str:
    """A number as a person reads it; an empty cell for what is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return "" if math.isnan(value) else str(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _states(runs: "pd.DataFrame") -> str:
    """`12 completed, 1 diverged`."""
    if "status" not in runs.columns:
        return f"{len(runs)} runs"
    return (
        ", ".join(f"{number} {state}" for state, number in runs["status"].value_counts().sort_index().items())
        or "no runs"
    )


def _cost(runs: "pd.DataFrame") -> list[tuple[str, str]]:
    """What the study took, summed over the runs that recorded it."""
    import pandas as pd

    units = {
        "wall_seconds": ("wall time, summed over runs", _duration),
        "cpu_seconds": ("CPU time", _duration),
        "flops": ("training FLOPs", "{:.4g}".format),
    }
    totals = []
    for name, (words, say) in units.items():
        if name in runs.columns and runs[name].notna().any():
            totals.append((words, say(float(pd.to_numeric(runs[name], errors="coerce").sum()))))
    return totals


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _environment(meta: StudyMeta, runs: "pd.DataFrame") -> list[tuple[str, str]]:
    """The study's environment and what the runs recorded; several machines show every distinct value."""
    found: dict[str, list[str]] = {str(key): [_said(value)] for key, value in meta.environment.items()}
    recorded: Iterable[Any] = runs["environment"] if "environment" in runs.columns else ()
    for record in recorded:
        for key, value in record.items() if isinstance(record, Mapping) else ():
            said = _said(value)
            if said and said not in found.setdefault(str(key), []):
                found[str(key)].append(said)
    return [(key, "; ".join(values)) for key, values in sorted(found.items()) if values]


def _said(value: Any) -> str:
    """A recorded value in words: `torch 2.13.0, numpy 2.4.6` for a mapping, nothing for what was not there."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
    return "" if value is None else str(value)
