"""`describe`, `rules`, `coord-check`, `throughput`, `schema`: what can be said of a config without a trained model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.commands.parser import EXIT_FAILED, AddCommand, load
from nanogpt.config import Config, UserError
from nanogpt.config.errors import number, whole_number

if TYPE_CHECKING:
    from nanogpt.describe import Description


def add(command: AddCommand) -> None:
    """Add the commands."""
    describe = command("describe", _describe, "parameters, FLOPs and memory of a config, without training it")
    describe.add_argument("target", type=Path, nargs="?", metavar="CONFIG", help="then any settings as --key=value")
    describe.add_argument("--many", action="store_true", help="read a JSON list of configs on stdin, answer as JSON")
    describe.add_argument("--elsewhere", action="store_true", help="with --many: devices need not be here")
    rules = command("rules", _rules, "the parametrization's rules with the numbers of a config")
    rules.add_argument("target", type=Path, metavar="CONFIG", help="then any settings as --key=value")
    _add_coord_check(command("coord-check", _coord_check, "do activations stay put while a model grows?"))
    command("throughput", _throughput, "measure how fast configs train here: JSON lines in and out (planners start it)")
    schema = command("schema", _schema, "the JSON schema of config files")
    schema.add_argument("what", choices=["config"])


def _add_coord_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="CONFIG", help="then any settings as --key=value")
    parser.add_argument("--widths", metavar="N,N,...", help="values of n_embd, such as 32,64,128,256")
    parser.add_argument("--depths", metavar="N,N,...", help="values of n_layer, such as 2,4,8,16,32")
    parser.add_argument("--modes", metavar="MODE,...", help="default: all")
    parser.add_argument(
        "--steps", type=whole_number(), default=10, help="optimizer steps per model; default %(default)s"
    )
    parser.add_argument("--seeds", type=whole_number(), default=3, help="models per size and mode; default %(default)s")
    parser.add_argument("--sequences", type=whole_number(), default=8, help="sequences per step; default %(default)s")
    parser.add_argument("--learning_rate", type=number, help="constant; default: moves weights by 1/20 of init_std")
    parser.add_argument("--adamw_learning_rate", type=number, help="with Muon: constant rate of what AdamW trains")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/coord_check/CONFIG")


def _describe(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.describe import describe_many, format_description

    if arguments.many:
        # Not json.dump: it encodes in Python, and writes each number by itself.
        sys.stdout.write(json.dumps(describe_many(json.load(sys.stdin), arguments.elsewhere)))
        return 0
    if arguments.target is None:
        raise UserError("describe: needs a config file, or --many")
    description, missing = _described(load(arguments.target, overrides))
    print(format_description(description, missing))
    return 0


def _described(config: Config) -> tuple["Description", str]:
    """What can be said of a config, and why its corpus is not there if it is not: sizes and rules need none."""
    from nanogpt.data.opening import MissingCorpus
    from nanogpt.describe import describe, describe_without_corpus

    try:
        return describe(config), ""
    except MissingCorpus as problem:
        return describe_without_corpus(config, problem), str(problem)


def _rules(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.rules import format_config_rules

    description, _ = _described(load(arguments.target, overrides))
    print(format_config_rules(description))
    return 0


def _coord_check(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.coordreport import check, sweeps_from

    if any("learning_rate=" in text for text in overrides):
        raise UserError("coord-check: takes --learning_rate, its own, which replaces that of the config")
    config = load(arguments.target, overrides)
    name = arguments.target.resolve().name if arguments.target.is_dir() else arguments.target.stem
    checked = check(config, sweeps_from(arguments, config), arguments.out or Path("results") / "coord_check" / name)
    print(checked.text)
    return 0 if checked.passed else EXIT_FAILED


def _throughput(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads
    from nanogpt.throughput import serve

    calm_threads()
    serve()
    return 0


def _schema(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.config.jsonschema import config_schema

    print(json.dumps(config_schema(), indent=2))
    return 0
