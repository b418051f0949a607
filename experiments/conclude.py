"""The last stage of a study: from its results folder to the fit, the report and each run's loss.png."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.exclusions import read_exclusions
from experiments.present import Asked
from experiments.results import load, load_curves
from experiments.store import StudyFolder
from nanogpt.config import UserError

if TYPE_CHECKING:
    from experiments.analysis.findings import Analysis
    from experiments.analysis.searched import Searched
    from experiments.report import StudyMeta


@dataclass(frozen=True)
class Written:
    """The text to print when a study has been analysed, and the claims that failed."""

    text: str
    failed: tuple[str, ...]


def fit_text(folder: StudyFolder, asked: Asked | None = None) -> Written:
    """The study's law, optima and approaches on its finished runs and the verdicts on its claims, as printed. `asked`:
    the analysis, where it is not the lock's. UserError when it asks for none of them."""
    from experiments.report import analyse, print_analysis

    asked = asked or Asked(folder.lock)
    lock = asked.lock
    if (
        lock.fit is None
        and lock.optimum is None
        and lock.approaches is None
        and lock.compare is None
        and not lock.claims
    ):
        missing = "no `fit:`, no `optimum:`, no `approaches:`, no `compare:` and no `claims:`"
        raise UserError(f"{folder.path}: the study has {missing}, so there is nothing to fit")
    analysis = analyse(report_meta(folder, asked), load(folder, details=True), load_curves(folder))
    return Written(_with_limits(print_analysis(analysis), asked), _failed(analysis))


def _with_limits(text: str, asked: Asked) -> str:
    """What a study cannot show stands beside what it shows, and what has changed since it ran."""
    lines = [text.rstrip(), *([f"limits: {asked.lock.limits}"] if asked.lock.limits else []),
             *(f"note: {note}" for note in asked.notes)]  # fmt: skip
    return "\n".join(lines)


def _failed(analysis: "Analysis") -> tuple[str, ...]:
    return tuple(each.text for each in analysis.judged if each.verdict == "failed")


def write_report(folder: StudyFolder, asked: Asked | None = None) -> Written:
    """Write report.html, report.md, table.csv, the figures and missing loss.png files. `asked` as for `fit_text`."""
    from experiments.report import analyse, print_analysis
    from experiments.report import write_report as write

    asked = asked or Asked(folder.lock)
    table, curves, meta = load(folder, details=True), load_curves(folder), report_meta(folder, asked)
    analysis = analyse(meta, table, curves)
    paths = write(folder.path, meta, table, curves, analysis)
    draw_losses(folder)
    return Written(f"{_with_limits(print_analysis(analysis), asked)}\nreport: {paths.html}", _failed(analysis))


def report_meta(folder: StudyFolder, asked: Asked | None = None) -> "StudyMeta":
    """What the report says of the study beside its numbers, from the lock or as it is `asked` now."""
    from experiments.report import StudyMeta

    asked = asked or Asked(folder.lock)
    lock = asked.lock
    target = f"{lock.source or folder.path}{f' --size {lock.size}' if lock.size else ''}"
    return StudyMeta(
        name=lock.name,
        question=lock.question,
        hypothesis=lock.hypothesis,
        limits=lock.limits,
        fit=lock.fit,
        optimum=lock.optimum,
        approaches=lock.approaches,
        compare=lock.compare,
        claims=tuple(lock.claims),
        report=lock.report,
        commands=(f"python -m experiments run {target}", f"python -m experiments report {target}"),
        late_claims=asked.new_claims,
        notes=(*asked.notes, *lock.notes, *_refusals(folder), *_exclusions(folder)),
        searched=_searched(folder),
    )


def _searched(folder: StudyFolder) -> "Searched | None":
    from experiments.analysis.searched import Searched

    search = folder.lock.search
    if search is None:
        return None
    cells = search.cell_factors if len(search.cells) > 1 else []
    return Searched(
        scales=search.scales,
        cells=tuple(cells),
        first_rung=search.pruner.at[0] if search.pruner.at else None,
        planned_flops=sum(run.flops for run in folder.runs()) if search.pruner.at else None,
    )


def _exclusions(folder: StudyFolder) -> list[str]:
    """Every run that a person left out, with the reason: a report without a fit must say it too."""
    runs = folder.runs()
    labels = {run.id: run.label for run in runs}
    found = read_exclusions(folder.path, runs)
    return [f"left out of fits and means by hand: {labels[id]} ({id}): {why}" for id, why in found.items()]


def _refusals(folder: StudyFolder) -> list[str]:
    """Proposals of a sampler that learns, which no lock could have a note on."""
    refused = [] if folder.lock.refused else folder.refused()
    return [f"{len(refused)} proposals were refused and replaced; the first: {refused[0].reason}"] if refused else []


def draw_losses(folder: StudyFolder) -> None:
    """Draw loss.png for the finished runs that have none; workers leave it out, since matplotlib takes a second."""
    from nanogpt.lossplot import draw_loss

    for path in folder.folders().values():
        if (path / "metrics.json").exists() and not (path / "loss.png").exists():
            draw_loss(path)
