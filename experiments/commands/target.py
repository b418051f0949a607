"""The study a command is about: its YAML file, or its results folder."""

import argparse
from pathlib import Path

from experiments.launchers.settings import chosen_launcher
from experiments.results import refuse_size
from experiments.runner import Prepared, locked, prepare
from experiments.study import Study
from nanogpt.config import UserError


def prepared_study(arguments: argparse.Namespace) -> Prepared:
    """The study as it would run now. Writes nothing."""
    path = Path(arguments.study)
    if path.is_dir():
        refuse_size(path, arguments.size)
        if getattr(arguments, "set", None):
            raise UserError(f"command line: --set: {path} is locked; give the study's YAML file instead")
        return locked(path)
    study = Study.load(path, getattr(arguments, "set", ()), arguments.size)
    # To look at the cost of a study, or to submit it, one need not sit where its GPUs are.
    looks = arguments.verb == "plan" or getattr(arguments, "dry_run", False)
    elsewhere = looks or chosen_launcher(study.launcher, getattr(arguments, "launcher", None)).elsewhere
    return prepare(study, arguments.out / study.name, getattr(arguments, "drifted", "stop"), elsewhere, looks)


def command_text(arguments: argparse.Namespace, verb: str, default_out: Path) -> list[str]:
    """The words of a command on the same study: what defines its runs and where they lie must be the same."""
    words = ["python", "-m", "experiments", verb, arguments.study]
    words += ["--size", arguments.size] if arguments.size is not None else []
    words += ["--out", str(arguments.out)] if arguments.out != default_out else []
    return [*words, *(word for pair in getattr(arguments, "set", ()) for word in ("--set", pair))]
