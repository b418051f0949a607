"""The table of a study: one tidy row per run, made from its lock and its records, never from a log or a name."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.analysis.filters import Filter
from experiments.analysis.laws import make_law
from experiments.analysis.spec import (
    FitSpec,
    check_approaches_spec,
    check_compare_spec,
    check_fit_spec,
    check_optimum_spec,
    check_report_spec,
    column_among,
    columns_named,
)
from experiments.analysis.statements import check_claims, parse_claims
from experiments.exclusions import Exclusion, read_exclusions
from experiments.lock import LockedRun
from experiments.search.verdicts import read_verdict
from experiments.store import FINISHED, RunState, StudyFolder, published_record
from experiments.study import Study
from nanogpt.config import UserError
from nanogpt.record import read_history

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path("results")
# Columns in this order first; the varied factors come after, under their dotted names.
COLUMNS = (
    "id", "label", "status", "seed", "n_params", "n_params_non_embedding", "n_params_active", "n_params_applied",
    "tokens", "epochs", "unique_tokens", "flops", "val_loss", "val_loss_stderr", "val_entropy", "val_excess_loss",
    "val_bits_per_byte", "best_val_loss", "best_step", "train_loss", "diverged_at_step", "steps", "flops_per_token",
    "applications", "tokens_per_second", "mfu", "wall_seconds", "cpu_seconds", "peak_memory_bytes", "attempts",
    "excluded",
)  # fmt: skip
_FROM_LOCK = ("flops_per_token", "n_params", "n_params_non_embedding", "n_params_active", "n_params_applied")


# What a search adds: the number of the proposal, and the loss at which all of them were compared first.
SEARCH_COLUMNS = ("trial", "first_rung_loss")
# What a line of a history adds, for figures of the training itself.
CURVE_COLUMNS = ("step", "learning_rate", "grad_norm", "label", "folder")


def check_columns(study: Study, factors: Iterable[str]) -> None:
    """Raises UserError when a section of the analysis names a column that the study's table will not have.

    Called before anything is trained: a slip of the pen should not be found at the end of a long study.
    """
    searched = SEARCH_COLUMNS if study.sweep.sampler.kind != "grid" else ()
    columns = dict.fromkeys([*COLUMNS, *CURVE_COLUMNS, *searched, *factors])
    fit = check_fit_spec(study.fit) if study.fit is not None else None
    optimum = check_optimum_spec(study.optimum) if study.optimum is not None else None
    approaches = check_approaches_spec(study.approaches) if study.approaches is not None else None
    compare = check_compare_spec(study.compare) if study.compare is not None else None
    named = columns_named(fit, check_report_spec(study.report), optimum, approaches, compare)
    for index, claim in enumerate(parse_claims(study.claims)):
        filtered = Filter(claim.where, "claims").names() if claim.where else ()
        named += [(f"claims.{index}", name) for name in (*claim.columns(), *filtered)]
    for key, name in named:
        column_among(columns, name, place_of(study, key))


def place_of(study: Study, key: str) -> str:
    """`study.yaml:12: fit.where`: where a key of the analysis stands, and which it is."""
    return f"{study.line(*key.split('.'))}: {key}"


def check_base(study: Study, runs: Iterable[LockedRun]) -> None:
    """Raises UserError when the base of the study's `optimum:` is a size that it does not train."""
    spec = check_optimum_spec(study.optimum) if study.optimum is not None else None
    if spec is None or spec.base is None:
        return
    factors = [run.factors for run in runs]
    per = column_among(dict.fromkeys([*COLUMNS, *factors[0]]), spec.per, place_of(study, "optimum.per"))
    sizes = sorted({run[per] for run in factors if per in run}, key=str)
    if sizes and spec.base not in sizes:
        known = ", ".join(map(str, sizes))
        raise UserError(f"{place_of(study, 'optimum.base')}: {spec.base!r} is none of the sizes {known}")


def check_study_claims(study: Study, runs: Iterable[LockedRun]) -> None:
    """Raises UserError for a claim that no result of the study can answer: a section or a variant that it lacks."""
    runs = list(runs)
    values: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in run.factors.items():
            values.setdefault(name, []).append(value)
    spec = check_fit_spec(study.fit) if study.fit is not None else None
    sections = [] if spec is None else ["fit", *(["fit.holdout"] if spec.holdout is not None else [])]
    known: dict[str, Any] = {}
    if runs:  # a search that learns has none before it starts
        known["batches"] = len({run.tokens // run.steps for run in runs})
        known["measures_noise"] = any(run.config["runtime"].get("noise_scale_interval") for run in runs)
    check_claims(
        parse_claims(study.claims), values, sections, lambda index: place_of(study, f"claims.{index}"),
        () if spec is None else _symbols(spec, values), **known,
    )  # fmt: skip


def _symbols(spec: FitSpec, values: Mapping[str, list[Any]]) -> tuple[str, ...]:
    """The parameters of a study's law; of one with a label column those of the variants that are trained, and none
    where that column is no factor of the study."""
    law = make_law(spec.law, **spec.chosen_columns())
    try:
        labels = {name: values[column_among(values, name, "fit")] for name in law.label_columns}
    except UserError:
        return ()
    return law.bind(labels).parameters if labels else law.parameters


def study_folder(
    study: Study | StudyFolder | str | os.PathLike[str], root: Path = RESULTS, size: str | None = None
) -> StudyFolder:
    """The results folder that is meant: it may be given itself, or by its study or the study's file and size."""
    if isinstance(study, StudyFolder):
        return study
    if isinstance(study, Study):
        return StudyFolder(root / study.name)
    path = Path(study)
    if path.is_dir():
        refuse_size(path, size)
        return StudyFolder(path)
    return StudyFolder(root / Study.load(path, size=size).name)


def refuse_size(folder: Path, size: str | None) -> None:
    """Raises UserError when a size is asked of a results folder, which holds one already."""
    if size is not None:
        raise UserError(f"command line: --size: {folder} is locked; give the study's YAML file instead")


def load(
    study: Study | StudyFolder | str | os.PathLike[str], root: Path = RESULTS, details: bool = False
) -> "pd.DataFrame":
    """One row per run of the study: identity, sizes, losses (nats per token), cost, the varied factors, and its folder.

    A run without a result has its status and sizes, and missing values for the rest; one whose record is damaged has
    failed. `excluded` says why a run is left out of fits. `details` adds the objects `environment` and `error`.
    Raises UserError when the study's lock or its exclusions cannot be read.
    """
    import pandas as pd

    folder = study_folder(study, root)
    runs, states = folder.runs(), folder.states()
    excluded = read_exclusions(folder.path, runs)
    rows = [{**_row(folder, run, states[run.id]), "excluded": _words(excluded.get(run.id))} for run in runs]
    factors = folder.lock.factors
    searched = SEARCH_COLUMNS if folder.lock.search is not None else ()
    columns = [*COLUMNS, *searched, *(name for name in factors if name not in COLUMNS), "folder"]
    return pd.DataFrame(rows, columns=[*columns, *(("environment", "error") if details else ())])


def _words(exclusion: Exclusion | None) -> str | None:
    return None if exclusion is None else str(exclusion)


def _row(study: StudyFolder, run: LockedRun, state: RunState) -> dict[str, Any]:
    folder = study.folder(run)
    record = published_record(folder) if state.status in FINISHED else None
    measured = record.model_dump() if record is not None else {key: getattr(run, key) for key in _FROM_LOCK}
    plain = {key: value for key, value in measured.items() if key in COLUMNS}
    tried = {} if run.trial is None else {"trial": run.trial, "first_rung_loss": _first_rung_loss(folder)}
    known = {"id": run.id, "label": run.label, "status": state.status, "seed": run.config["seed"]}
    objects = {"environment": measured.get("environment"), "error": {"message": state.detail} if state.detail else None}
    return {**run.factors, **plain, **known, **tried, **objects, "folder": str(folder)}


def _first_rung_loss(folder: Path) -> float | None:
    """The loss at the first rung of a pruner, where every trial was measured after the same share of its horizon."""
    verdict = read_verdict(folder, 0)
    return None if verdict is None else verdict.value


def load_curves(study: Study | StudyFolder | str | os.PathLike[str], root: Path = RESULTS) -> "pd.DataFrame":
    """The histories of all finished runs as one long table: a row per line, with the run's id, size and factors."""
    import pandas as pd

    folder = study_folder(study, root)
    folder.folders()
    rows: list[dict[str, Any]] = []
    for run in folder.runs():
        for line in read_history(folder.folder(run) / "history.jsonl", forgiving=True):
            plain = {key: value for key, value in line.items() if not isinstance(value, dict | list)}
            sizes = {"n_params": run.n_params, "n_params_non_embedding": run.n_params_non_embedding}
            rows.append({"id": run.id, "label": run.label, **sizes, **run.factors, **plain})
    columns = ["id", "label", "n_params", "n_params_non_embedding", "step", "tokens", "flops", "train_loss", "val_loss"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*columns, *(name for name in table.columns if name not in columns)])


def best_row(table: "pd.DataFrame") -> "pd.Series[Any]":
    """The completed run with the lowest validation loss. Raises UserError when none has completed."""
    done = table[(table["status"] == "completed") & table["val_loss"].notna() & table["excluded"].isna()]
    if done.empty:
        raise UserError("no run has completed yet, so none is best")
    return done.iloc[int(done["val_loss"].argmin())]


def table_text(table: "pd.DataFrame") -> str:
    """The columns a person compares first, and the best run by name."""
    shown = [
        *(["trial"] if "trial" in table.columns else []),
        "label",
        "id",
        "status",
        "n_params_non_embedding",
        "tokens",
        "flops",
        "val_loss",
        "val_loss_stderr",
    ]
    with_numbers = table[shown].to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.5g}")
    if not (table["status"] == "completed").any():
        return f"{with_numbers}\nno run has completed yet"
    best = best_row(table)
    return f"{with_numbers}\nbest: {best['label']} ({best['id']}), val_loss {best['val_loss']:.4f}"
