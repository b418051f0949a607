"""From somebody's table to a fitted law: which columns are what, which rows count and why not, and what to distrust.

Columns become N, D, C (compute), U (unique tokens) and L (the loss), whatever the table calls them. Every row of the
file is either fitted or dropped with a reason.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis.filters import Filter
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.holdout import Holdout, holdout
from experiments.analysis.laws import LAWS, Law, make_law
from experiments.analysis.on_loss import fit_on_loss
from experiments.analysis.readtable import Table, read_table
from experiments.analysis.rollout import Rollout, rollout
from experiments.analysis.suspects import checked_units, likely_curves, shared_ids
from experiments.analysis.tablewarnings import flag_of, table_warnings, unused_sizes
from nanogpt.config import UserError, did_you_mean

SYMBOLS = {"n": "N", "d": "D", "flops": "C", "unique": "U", "loss": "L"}
OWN_ID = "id in the file"  # what a column `id` of the table is called here, where `id` names lines
MOST_HELD_OUT = 200  # resamples of the fits below a cut, of which there are several
OPERATORS = ("+", "-", "*", "/")


@dataclass(frozen=True)
class Columns:
    """What the table calls things: an input of the law (`n`, `d`, `flops`, `unique`, ...) to a column or an expression
    in columns such as `params_m * 1e6`; and the loss."""

    loss: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Rows:
    """Which rows count: those for which `where` holds and no `drop` does. `trust_units`: though units seem mixed."""

    where: str | None = None
    drop: tuple[str, ...] = ()
    trust_units: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table in the law's symbols. `rows`: N, D, C, L ... as far as known, `id` naming the line, other columns of
    the file under their own names; `sources`: what each symbol was read from; `dropped`: id and reason; `warnings`."""

    path: str
    rows: pd.DataFrame
    sources: Mapping[str, str]
    dropped: pd.DataFrame
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TableFit:
    """A law fitted to a prepared table, with its held-out error (or, in `problems`, why there is none)."""

    prepared: Prepared
    fit: Fit
    rollout: Rollout | None = None
    holdout: Holdout | None = None
    problems: tuple[str, ...] = field(default=())


def prepare(path: str | Path, law: str, columns: Columns, rows: Rows | None = None) -> tuple[Law, Prepared]:
    """Read the table and choose its rows; the law reads the symbols.

    Raises UserError in one line: a file that is no table, an unknown column (with the nearest), a cell that is no
    number, values without a logarithm, a constant loss, mixed units.
    """
    table, rows = read_table(path), rows or Rows()
    if law not in LAWS:
        raise UserError(f"law: {law!r} is not a known law{did_you_mean(law, LAWS)}")
    data, sources = _symbols(table, law, columns)
    chosen, names = _law(law, data, table.path)
    _refuse_unread(law, names, columns, table.path)
    everything = table.guessed().assign(line=table.frame.index)
    everything = everything.drop(columns=[name for name in data.columns if name in everything]).join(data)
    kept, dropped = _choose(everything, data[[*names, "L"]], sources, rows, table.path)
    _refuse_too_few(kept, dropped, chosen, table.path)
    _refuse(kept, chosen, sources, table.path)
    checked_units(kept, chosen.columns, "L", table.path, rows.trust_units, "--trust-units")
    named = {**columns.inputs, "loss": columns.loss}
    warnings = (*table_warnings(kept, chosen, table, named), *unused_sizes(chosen, sources, named))
    by_line = (
        kept.rename(columns={"id": OWN_ID}).assign(id=[f"line {line}" for line in kept.index]).reset_index(drop=True)
    )
    return chosen, Prepared(table.path, by_line, sources, dropped, warnings)


def fit_prepared(
    law: Law, prepared: Prepared, *, on: str = "log", cuts: int = 5, held: Mapping[str, Any] | None = None,
    **options: Any,
) -> TableFit:  # fmt: skip
    """Fit, predict held-out rows under several cuts (0: none) and, with `held`, under the options of `holdout`.

    `on`: residuals of the logarithm ("log") or of the loss itself ("loss", plain least squares). Other options go to
    `fit`. Raises UserError as `fit`.
    """
    fitter = fit_on_loss if on == "loss" else fit
    options = {**options, "trust_units": True}  # `prepare` has asked, and the lines of the file are named there
    if options.get("cluster") == "id" and OWN_ID in prepared.rows:
        options["cluster"] = OWN_ID
    result = fitter(law, prepared.rows, y="L", **options)
    shared, maybe = _dependence(law, prepared, options.get("cluster"))
    whole = replace(
        result, dropped=pd.concat([prepared.dropped, result.dropped], ignore_index=True),
        warnings=(*result.warnings, *shared, *maybe), independent=result.independent and not shared,
    )  # fmt: skip
    by = "C" if "C" in prepared.rows else law.columns[0]
    told = {**options, "fitter": fitter, "y": "L"}
    told["bootstrap"] = min(options.get("bootstrap", 0), MOST_HELD_OUT)
    rolled, problems = None, []
    if cuts:
        try:
            rolled = rollout(law, prepared.rows, by, cuts=cuts, **told)
        except UserError as error:
            problems.append(f"no held-out error stands beside this fit: {error}")
    apart = None
    if held is not None:
        apart = _held_out(law, prepared, {"by": by, **held}, told)
    return TableFit(prepared, whole, rolled, apart, tuple(problems))


def _held_out(law: Law, prepared: Prepared, cut: Mapping[str, Any], told: Mapping[str, Any]) -> Holdout:
    """The cut asked for; what is wrong with it is said of its flag."""
    try:
        return holdout(law, prepared.rows, **cut, **told)
    except UserError as error:
        asked = ",".join(f"{key}={value}" for key, value in cut.items())
        raise UserError(f"{prepared.path}: --holdout {asked}: {str(error).removeprefix('holdout: ')}") from None


def _dependence(law: Law, prepared: Prepared, cluster: str | None) -> tuple[list[str], list[str]]:
    """What to say of points of one run taken for several: what is sure, and what may be."""
    if OWN_ID in prepared.rows and (said := shared_ids(prepared.rows, OWN_ID, cluster, "--cluster id")):
        return said, []
    if not {"N", "D"} <= set(law.columns):
        return [], []
    read = {*SYMBOLS.values(), *law.columns, *law.label_columns, *prepared.sources.values(), "id", "line", OWN_ID}
    return likely_curves(prepared.rows, [str(name) for name in prepared.rows if name not in read], cluster)


def _symbols(table: Table, law: str, columns: Columns) -> tuple[pd.DataFrame, dict[str, str]]:
    """A column per symbol that is named or follows from C = 6 N D, and what each is read from."""
    labels = LAWS[law].labels
    known = {**{name: name for name in LAWS[law].inputs()}, **SYMBOLS}
    given = {**columns.inputs, "loss": columns.loss}
    data, sources = pd.DataFrame(index=table.frame.index), {}
    for key, text in given.items():
        if key not in known:
            raise UserError(f"law {law}: it has no input {key!r}{did_you_mean(key, known)}")
        flag = flag_of(key)
        data[known[key]] = table.texts(text, flag) if key in labels else _numbers(table, text, flag)
        sources[known[key]] = text if text in table.frame.columns else f"{text} (worked out)"
    _refuse_shared_columns(given, table.path)
    for symbol, of, formula in (
        ("D", ("N", "C"), "C / (6 N)"),
        ("N", ("D", "C"), "C / (6 D)"),
        ("C", ("N", "D"), "6 N D"),
    ):
        if symbol not in data and set(of) <= set(data.columns):
            first, second = (data[name] for name in of)
            data[symbol] = 6.0 * first * second if symbol == "C" else second / (6.0 * first)
            sources[symbol] = formula
    return data, sources


def _refuse_shared_columns(given: Mapping[str, str], path: str) -> None:
    """UserError where two roles are read from one column: no law tells them apart."""
    seen: dict[str, str] = {}
    for key, text in given.items():
        column = text.strip().strip("`")
        if column in seen:
            raise UserError(f"{path}: {flag_of(seen[column])} and {flag_of(key)} are both {column!r}; each is a column "
                            "of its own")  # fmt: skip
        seen[column] = key


def _refuse_unread(law: str, names: Iterable[str], columns: Columns, path: str) -> None:
    """UserError for an input that the law does not take; sizes and compute follow from each other and may stand."""
    takes = LAWS[law].inputs()
    for key in columns.inputs:
        if key not in ("n", "d", "flops") and SYMBOLS.get(key, key) not in names:
            raise UserError(f"{path}: --input {key}: law {law} has no input {key!r}; it takes {', '.join(takes)}")


def _numbers(table: Table, text: str, flag: str) -> "pd.Series[float]":
    """A column of numbers, or an expression in several."""
    bare, quoted = _unquoted(text, table.frame.columns, f"{table.path}: {flag}")
    if text in table.frame.columns or not any(sign in bare for sign in OPERATORS) or not _parses(bare):
        return table.numbers(quoted.get(bare, text), flag)
    expression = Filter(bare, f"{table.path}: {flag}", "column")
    if not expression.names():
        raise UserError(f"{table.path}: {flag}: {text!r} names no column; columns: {', '.join(table.frame.columns)}")
    names = dict.fromkeys(expression.names())
    parts = pd.DataFrame({name: table.numbers(quoted.get(name, name), flag) for name in names})
    rows = ({str(name): value for name, value in row.items()} for row in parts.to_dict(orient="records"))
    values = [expression.value(row) if not any(map(np.isnan, row.values())) else float("nan") for row in rows]
    return pd.Series(values, parts.index, float)


def _unquoted(text: str, columns: Iterable[str], place: str) -> tuple[str, dict[str, str]]:
    """An expression with every column `between backticks` under a name without blanks, and what those names mean."""
    known = [str(name) for name in columns]
    meant: dict[str, str] = {}
    for column in re.findall("`([^`]*)`", text):
        if column not in known:
            raise UserError(f"{place}: no column {column!r}{did_you_mean(column, known)}")
        name = "_" + re.sub(r"\W", "_", column)
        while name in known or meant.get(name, column) != column:
            name += "_"
        meant[name], text = column, text.replace(f"`{column}`", name)
    return text, meant


def _parses(text: str) -> bool:
    try:
        return isinstance(ast.parse(text.strip(), mode="eval").body, ast.BinOp | ast.UnaryOp | ast.Call)
    except SyntaxError:
        return False


def _law(name: str, data: pd.DataFrame, path: str) -> tuple[Law, list[str]]:
    """The law on the symbols. A law in one input takes compute, or the only input there is."""
    chosen = {key: SYMBOLS.get(key, key) for key in LAWS[name].inputs()}
    if "x" in chosen and "x" not in data:
        there = [symbol for symbol in ("C", "N", "D", "U") if symbol in data]
        if not there:
            raise UserError(f"{path}: law {name} needs --flops COLUMN (or --n, --d, or --input x=COLUMN)")
        chosen["x"] = there[0]
    for key, symbol in chosen.items():
        if symbol not in data:
            flag = f"--{key} COLUMN" if key in ("n", "d") else f"--input {key}=COLUMN"
            also = " (or --flops COLUMN beside the other: D = C / (6 N))" if key in ("n", "d") else ""
            raise UserError(f"{path}: law {name} needs {flag}{also}")
    law = make_law(name, **chosen)
    return law, [*law.columns, *law.label_columns]


def _choose(
    everything: pd.DataFrame, used: pd.DataFrame, sources: Mapping[str, str], rows: Rows, path: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit, and the others with the first reason that applies."""
    reason = pd.Series("", everything.index, object)
    for text, flag, unwanted in (*((text, "--drop", True) for text in rows.drop), (rows.where, "--where", False)):
        if text is None:
            continue
        bare, quoted = _unquoted(text, everything.columns, f"{path}: {flag}")
        condition = Filter(bare, f"{path}: {flag}", "column")
        if not condition.names():
            raise UserError(f"{path}: {flag}: {text!r} names no column, so it says the same of every row")
        named = everything.assign(**{name: everything[column] for name, column in quoted.items()})
        out = [condition.keeps({str(k): v for k, v in row.items()}) is unwanted
               for row in named.to_dict(orient="records")]  # fmt: skip
        reason[(reason == "") & pd.Series(out, everything.index)] = (
            f"dropped where {text}" if unwanted else f"not where {text}"
        )
    for symbol in used.columns:
        empty = used[symbol].isna() | used[symbol].astype(str).str.strip().eq("")
        reason[(reason == "") & empty] = f"no value for {symbol} ({sources[symbol]})"
    kept = reason == ""
    dropped = pd.DataFrame({"id": [f"line {line}" for line in everything.index[~kept]], "reason": reason[~kept]})
    return everything[kept], dropped.reset_index(drop=True)


def _refuse_too_few(kept: pd.DataFrame, dropped: pd.DataFrame, law: Law, path: str) -> None:
    """UserError where too few rows are left, with what became of the others."""
    needed = len(law.parameters) + 1
    if len(kept) >= needed:
        return
    counts = dropped.groupby("reason", sort=False).size()
    why = "".join(f"; {number} dropped: {reason}" for reason, number in counts.items())
    raise UserError(f"{path}: {law.name} has {needed - 1} parameters and needs at least {needed} points, found "
                    f"{len(kept)}{why}")  # fmt: skip


def _refuse(kept: pd.DataFrame, law: Law, sources: Mapping[str, str], path: str) -> None:
    """UserError for values without a logarithm, and for losses that are all the same."""
    for symbol in (*law.columns, "L"):
        bad = kept.index[~(kept[symbol] > 0)]
        if len(bad):
            value = kept.loc[bad[0], symbol]
            found = f"{path}, line {bad[0]}: {symbol} ({sources[symbol]}) is {value:g}"
            raise UserError(f"{found}; a fit takes logarithms, so it must be positive ({len(bad)} of {len(kept)} rows; "
                            f'--drop "{symbol} <= 0" leaves them out)')  # fmt: skip
    if len(kept) and kept["L"].nunique() == 1:
        raise UserError(f"{path}: every loss (L, {sources['L']}) is {kept['L'].iloc[0]:g}; there is nothing to fit")
