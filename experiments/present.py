"""The analysis of a study as its file says it now, over the runs as they were locked.

What was trained is in the lock. Claims, fit and figures are questions asked of it, and a file that is given is asked as
it stands; a results folder alone is asked what it was locked with.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from experiments.lock import Lock, holds
from experiments.results import check_base, check_columns, check_study_claims
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError, canonical_json

ANALYSIS = ("question", "hypothesis", "limits", "fit", "optimum", "approaches", "compare", "claims", "report")


@dataclass(frozen=True)
class Asked:
    """A lock with the analysis to make of it. `new_claims`: those that the lock does not hold; `notes`: in what the
    file and the lock differ, for people."""

    lock: Lock
    new_claims: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def asked_now(folder: StudyFolder, source: str) -> Asked:
    """What is asked of a results folder: by the study file `source`, or by its lock where `source` is the folder.

    Raises UserError, with file and line, for a file that is no study or asks what these runs cannot answer.
    """
    lock = folder.lock
    if not Path(source).is_file():
        return Asked(lock)
    study = Study.load(source, lock.overrides, lock.size)
    if holds(lock, study):
        return Asked(lock)
    sections = {name: getattr(study, name) for name in ANALYSIS}
    changed = [name for name, value in sections.items() if value != getattr(lock, name)]
    runs = folder.runs()
    check_columns(study, lock.factors)
    check_base(study, runs)
    check_study_claims(study, runs)
    then = [" ".join(claim.split()) for claim in lock.claims]
    new = tuple(text for claim in study.claims if (text := " ".join(claim.split())) not in then)
    notes = (*_changed_text(source, changed), *_others_text(study, lock))
    return Asked(lock.model_copy(update=sections), new, notes)


def _changed_text(source: str, changed: list[str]) -> list[str]:
    if not changed:
        return []
    names = ", ".join(f"`{name}:`" for name in changed)
    have = "have" if len(changed) > 1 else "has"
    return [f"{names} {have} changed since the runs were locked, and {'are' if len(changed) > 1 else 'is'} read from "
            f"{source} as it is now"]  # fmt: skip


def _others_text(study: Study, lock: Lock) -> list[str]:
    """That the file would now train other runs: what is analysed is what was locked."""
    try:
        others = _runs_missing(study, lock)
    except UserError as error:
        return [f"the runs that are analysed are those of the lock; the file's own cannot be made: {error}"]
    if not others:
        return []
    return [f"the study's file {others} than its lock; the runs that are analysed are those of the lock, and `plan` "
            "shows what `run` would do"]  # fmt: skip


def _runs_missing(study: Study, lock: Lock) -> str:
    """How the runs of the file differ from the lock's, by what was asked of each; nothing is resolved for it."""
    search = study.search()
    if search is not None or lock.search is not None:
        both = [None if each is None else each.model_dump(exclude={"data"}) for each in (search, lock.search)]
        return "" if both[0] == both[1] else "searches otherwise"
    repeated = {note.partition(" is the same run as ")[0] for note in lock.notes if " is the same run as " in note}
    now = {_digest(spec.config.model_dump(mode="json")) for spec in study.runs() if spec.label not in repeated}
    then = {run.asked for run in lock.runs}
    more, fewer = len(now - then), len(then - now)
    parts = [f"asks for {more} run{'s' * (more != 1)} more"] if more else []
    parts += [f"{'and ' if more else 'asks for '}{fewer} fewer"] if fewer else []
    return " ".join(parts)


def _digest(tree: object) -> str:
    return sha256(canonical_json(tree).encode()).hexdigest()
