"""`fit STUDY`, and `fit --csv FILE`: a law for any table of sizes, tokens and losses."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.commands.looking import folder_of, judged
from experiments.commands.tableflags import DELTA, add_flags
from experiments.commands.tabletargets import targets_of, write_all
from experiments.present import asked_now
from experiments.results import RESULTS
from nanogpt.config import UserError, did_you_mean

SUCCESS = 0
HOLDOUT_KEYS = ("by", "fraction", "below", "largest")


def fit(arguments: argparse.Namespace) -> int:
    """The study's law or optima, or a table's law, fitted and printed."""
    if (arguments.study is None) is (arguments.csv is None):
        raise UserError("fit: give a study, or --csv FILE with --n, --d (or --flops) and --loss")
    if arguments.csv is not None:
        if arguments.strict:
            raise UserError("fit: --strict judges the claims of a study, and a table has none")
        if arguments.size is not None:
            raise UserError("fit: --size chooses among the sizes of a study, and a table has none")
        if arguments.out != RESULTS:
            raise UserError("fit: --out is the root of the results of studies; a table's go to --json and --figure")
        return _fit_table(arguments)
    _refuse_flags_of_tables(arguments)
    from experiments.conclude import fit_text

    folder = folder_of(arguments)
    written = fit_text(folder, asked_now(folder, arguments.study))
    print(written.text)
    return judged(written.failed, arguments.strict)


def _refuse_flags_of_tables(arguments: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = [f"--{name.replace('_', '-')}" for name, default in vars(parser.parse_args([])).items()
             if getattr(arguments, name) != default]  # fmt: skip
    if given:
        raise UserError(f"fit: {', '.join(sorted(given))}: only with --csv FILE; a study's file says how it is fitted")


def _fit_table(arguments: argparse.Namespace) -> int:
    from experiments.analysis.asked_points import parse_points
    from experiments.analysis.tablefit import Columns, Rows, fit_prepared, prepare
    from experiments.analysis.tablewords import as_data, table_text

    inputs, options, held = _inputs(arguments), _options(arguments), _holdout(arguments.holdout)
    if arguments.loss is None:
        raise UserError("fit: --csv also needs --loss COLUMN")
    targets = targets_of(arguments)
    name = arguments.law or ("chinchilla" if len(inputs.keys() & {"n", "d", "flops"}) > 1 else "power_law")
    rows = Rows(arguments.where, tuple(arguments.drop), arguments.trust_units)
    law, prepared = prepare(arguments.csv, name, Columns(arguments.loss, inputs), rows)
    points = parse_points(arguments.predict, law, prepared)
    done = fit_prepared(law, prepared, on=arguments.residual, cuts=arguments.rollout, held=held, **options)
    data = json.dumps(_plain(as_data(done, points)), indent=1, allow_nan=False) if arguments.json is not None else ""
    contents = {targets["json"]: (data + "\n").encode()} if "json" in targets else {}
    write_all(contents | _pictures(done, targets))
    print(data if str(arguments.json) == "-" else table_text(done, points))
    return SUCCESS


def _inputs(arguments: argparse.Namespace) -> dict[str, str]:
    found = {key: getattr(arguments, key) for key in ("n", "d", "flops") if getattr(arguments, key) is not None}
    for text in arguments.input or []:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise UserError(f"fit: --input {text!r}: expected NAME=COLUMN, such as unique=unique_tokens")
        if name.strip() in found:
            raise UserError(f"fit: --input {name.strip()}: the input is given twice")
        found[name.strip()] = column.strip()
    if not found:
        raise UserError("fit: --csv also needs --n and --d, or --n and --flops, or --flops alone for a law in compute")
    return found


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `fit` takes."""
    resamples = 1000 if arguments.bootstrap is None else arguments.bootstrap
    chosen = arguments.loss_fn or ("lsq" if arguments.residual == "loss" else "huber")
    if arguments.delta is not None and chosen in ("lad", "lsq"):
        raise UserError(f"fit: --delta is the threshold of --loss-fn huber; {chosen} has none")
    options: dict[str, Any] = {
        "seed": arguments.seed, "cluster": arguments.cluster, "loss": chosen, "resample": arguments.resample,
        "delta": DELTA if arguments.delta is None else arguments.delta, "bootstrap": resamples,
    }  # fmt: skip
    if arguments.residual == "log":
        return options | {"intervals": arguments.intervals}
    if arguments.intervals == "profile":
        raise UserError("fit: --intervals profile needs residuals of ln L, so not --residual loss")
    return options


def _holdout(text: str | None) -> dict[str, Any] | None:
    """`largest=3,by=C` as the options of `holdout`."""
    if text is None:
        return None
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in HOLDOUT_KEYS:
            raise UserError(f"fit: --holdout {text!r}: {part.strip()!r} is not known{did_you_mean(key, HOLDOUT_KEYS)} "
                            "(as in largest=3 or below=1e21,by=C)")  # fmt: skip
        try:
            found[key] = value if key == "by" else int(value) if key == "largest" else float(value)
        except ValueError:
            raise UserError(f"fit: --holdout {text!r}: {key} needs a number, found {value!r}") from None
    return found


def _pictures(done: Any, targets: Mapping[str, Path]) -> dict[Path, bytes]:
    """The figures that are asked for, drawn."""
    if not targets.keys() & {"figure", "corner"}:
        return {}
    from experiments.analysis.corner import corner, draws_of
    from experiments.analysis.overview import overview
    from experiments.analysis.saving import figure_of, picture

    drawn = {}
    if "figure" in targets:
        drawn[targets["figure"]] = picture(overview(done), targets["figure"].suffix)
    if "corner" in targets:
        figure = figure_of(corner(draws_of(done.fit), fit=done.fit))
        drawn[targets["corner"]] = picture(figure, targets["corner"].suffix)
    return drawn


def _plain(value: Any) -> Any:
    """Ready for JSON: numpy's numbers as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
