"""`fit STUDY`, and `fit --csv FILE`: a law for any table of sizes, tokens and losses."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.commands.looking import folder_of, judged
from experiments.present import asked_now
from nanogpt.config import UserError, did_you_mean
from nanogpt.record import replacing

SUCCESS = 0
HOLDOUT_KEYS = ("by", "fraction", "below", "largest")
PICTURES = (".png", ".svg", ".pdf")


def fit(arguments: argparse.Namespace) -> int:
    """The study's law or optima, or a table's law, fitted and printed."""
    if (arguments.study is None) is (arguments.csv is None):
        raise UserError("fit: give a study, or --csv FILE with --n, --d (or --flops) and --loss")
    if arguments.csv is not None:
        if arguments.strict:
            raise UserError("fit: --strict judges the claims of a study, and a table has none")
        return _fit_table(arguments)
    from experiments.conclude import fit_text

    folder = folder_of(arguments)
    written = fit_text(folder, asked_now(folder, arguments.study))
    print(written.text)
    return judged(written.failed, arguments.strict)


def _fit_table(arguments: argparse.Namespace) -> int:
    from experiments.analysis.asked_points import parse_points
    from experiments.analysis.tablefit import Columns, Rows, fit_prepared, prepare
    from experiments.analysis.tablewords import as_data, table_text

    inputs, options, held = _inputs(arguments), _options(arguments), _holdout(arguments.holdout)
    if arguments.loss is None:
        raise UserError("fit: --csv also needs --loss COLUMN")
    for path in (arguments.figure, arguments.corner):
        if path is not None and path.suffix not in PICTURES:
            raise UserError(f"fit: {path}: a figure is written as one of {', '.join(PICTURES)}")
    name = arguments.law or ("chinchilla" if len(inputs.keys() & {"n", "d", "flops"}) > 1 else "power_law")
    rows = Rows(arguments.where, tuple(arguments.drop), arguments.trust_units)
    law, prepared = prepare(arguments.csv, name, Columns(arguments.loss, inputs), rows)
    points = parse_points(arguments.predict, law, prepared)
    done = fit_prepared(law, prepared, on=arguments.residual, cuts=arguments.rollout, held=held, **options)
    data = json.dumps(_plain(as_data(done, points)), indent=1, allow_nan=False) if arguments.json is not None else ""
    if arguments.json is not None and str(arguments.json) != "-":
        _write(arguments.json, (data + "\n").encode())
    _draw(done, arguments)
    print(data if str(arguments.json) == "-" else table_text(done, points))
    return SUCCESS


def _inputs(arguments: argparse.Namespace) -> dict[str, str]:
    found = {key: getattr(arguments, key) for key in ("n", "d", "flops") if getattr(arguments, key) is not None}
    for text in arguments.input or []:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise UserError(f"fit: --input {text!r}: expected NAME=COLUMN, such as unique=unique_tokens")
        found[name.strip()] = column.strip()
    if not found:
        raise UserError("fit: --csv also needs --n and --d, or --n and --flops, or --flops alone for a law in compute")
    return found


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `fit` takes."""
    resamples = 1000 if arguments.bootstrap is None else arguments.bootstrap
    options: dict[str, Any] = {"seed": arguments.seed, "cluster": arguments.cluster}
    if arguments.residual == "loss":
        if arguments.intervals == "profile":
            raise UserError("fit: --intervals profile needs residuals of ln L, so not --residual loss")
        return options | {
            "loss": arguments.loss_fn or "lsq", "delta": arguments.delta, "resample": arguments.resample,
            "bootstrap": resamples,
        }  # fmt: skip
    return options | {
        "loss": arguments.loss_fn or "huber", "delta": arguments.delta, "resample": arguments.resample,
        "bootstrap": resamples, "intervals": arguments.intervals,
    }  # fmt: skip


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


def _draw(done: Any, arguments: argparse.Namespace) -> None:
    if arguments.figure is None and arguments.corner is None:
        return
    from experiments.analysis.corner import corner, draws_of
    from experiments.analysis.overview import overview
    from experiments.analysis.saving import figure_of, picture

    if arguments.figure is not None:
        _write(arguments.figure, picture(overview(done), arguments.figure.suffix))
    if arguments.corner is not None:
        _write(arguments.corner, picture(figure_of(corner(draws_of(done.fit), fit=done.fit)), arguments.corner.suffix))


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as draft:
            draft.write_bytes(content)
    except OSError as error:
        raise UserError(f"fit: {path} cannot be written: {error.strerror or error}") from None


def _plain(value: Any) -> Any:
    """Ready for JSON: numpy's numbers as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
