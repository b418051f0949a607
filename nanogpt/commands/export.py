"""`export`: a trained model for other programs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nanogpt.commands.parser import EXIT_STOPPED, AddCommand
from nanogpt.config.errors import whole_number


def add(command: AddCommand) -> None:
    """Add the command."""
    export = command("export", _export, "a trained model as a folder that transformers loads")
    export.add_argument("place", metavar="RUN_OR_CHECKPOINT", help="a run's folder, a checkpoint, a folder, hf:NAME")
    export.add_argument("--to", choices=["hf"], default="hf", help="the layout: Hugging Face's, the default")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="what is made: a new folder")
    export.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="default %(default)s"
    )
    export.add_argument(
        "--vocab_size", type=whole_number(1), metavar="N", help="tokens without padding; default: the tokenizer's"
    )


def _export(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads

    calm_threads()
    from nanogpt.stop import interrupted_by_sigterm
    from nanogpt.trained import load_trained
    from nanogpt.weights.export import export, summary

    try:
        with interrupted_by_sigterm():
            trained = load_trained(arguments.place, "cpu")
            done = export(trained, arguments.folder, arguments.dtype, arguments.vocab_size)
    except KeyboardInterrupt:
        print("nanogpt: export: stopped", file=sys.stderr)
        return EXIT_STOPPED
    for line in summary(done):
        print(line)
    return 0
