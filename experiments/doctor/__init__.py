"""`python -m experiments doctor`: is everything there that a study needs, here and on the way to its launcher.

What this package loads at first is the standard library, and each examination is guarded, so that it reports whatever
is broken instead of breaking itself; `python -m experiments.doctor` starts even where no other command does.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.doctor import folder, launchers, machine
from experiments.doctor.finding import Finding, guarded, ok

SHARED = ("slurm", "ray")


@dataclass(frozen=True)
class Patient:
    """What is examined: a study where one is given, its launcher, and where its results lie."""

    study: Any
    out: Path
    launcher: str
    settings: Any
    findings: list[Finding]


def examine(study: str | None, out: Path, launcher: str | None) -> list[Finding]:
    """Everything, in the order in which a study needs it. Changes nothing, and never raises."""
    patient = _patient(study, out, launcher)
    shared = patient.launcher in SHARED
    return [
        *guarded("python", machine.python),
        *guarded("packages", machine.packages),
        *guarded("torch", machine.torch_and_data),
        *guarded("cores", machine.cores),
        *guarded("memory", machine.memory),
        *patient.findings,
        *guarded("results", lambda: folder.results(patient.out, shared)),
        *(guarded(patient.launcher, lambda: launchers.launchers(patient.settings)) if patient.settings else []),
        *guarded("tracker", lambda: trackers(patient.study)),
    ]


def _patient(study: str | None, out: Path, launcher: str | None) -> Patient:
    """What can be known of it: a study or a launcher's name that cannot be read is a finding, and the rest goes on."""
    known: dict[str, Any] = {"study": None, "out": out, "launcher": launcher or "local", "settings": None}
    section: list[Any] = [None]

    def read_study() -> Iterator[Finding]:
        if study is not None:
            name, section[0], known["study"], known["out"] = _study(Path(study), out)
            yield ok("study", f"{name}: {len(known['study'])} runs")

    def read_launcher() -> Iterator[Finding]:
        from experiments.launchers.settings import chosen_launcher

        known["settings"] = chosen_launcher(section[0], launcher)
        known["launcher"] = known["settings"].kind
        yield from ()

    findings = [*guarded("study", read_study), *guarded("launcher", read_launcher)]
    return Patient(**known, findings=findings)


def _study(path: Path, out: Path) -> tuple[str, Any, list[Any], Path]:
    """Name, launcher section, runtime sections of the runs and results folder, from a study's file or its folder."""
    from experiments.store import StudyFolder
    from experiments.study import Study

    if path.is_dir():
        lock = StudyFolder(path).lock
        return lock.name, lock.launcher, [run.config["runtime"] for run in lock.runs], path
    study = Study.load(path)
    runtimes = [run.config.runtime.model_dump() for run in study.runs()]
    return study.name, study.launcher, runtimes, out / study.name


def trackers(runtimes: list[Any] | None) -> Iterator[Finding]:
    """Whether the trackers of a study are installed, and W&B can be reached from here."""
    from experiments.tracking import examine_trackers

    yield from examine_trackers(runtimes or [])


def report(findings: list[Finding]) -> str:
    """The findings as a table for people, the worst counted at the end."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<8} {finding.check:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
    counts = Counter(finding.verdict for finding in findings)
    said = ", ".join(
        f"{counts[name]} {name}{'s' * (counts[name] > 1)}" for name in ("problem", "warning") if counts[name]
    )
    return "\n".join([*lines, said or "all is well"])


def main(study: str | None, out: Path, launcher: str | None, as_json: bool) -> int:
    """Print the report; returns 1 when there is a problem, else 0."""
    findings = examine(study, out, launcher)
    sick = any(finding.verdict == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not sick, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(report(findings))
    return int(sick)
