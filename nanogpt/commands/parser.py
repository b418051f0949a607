"""What all commands of the engine share: exit codes, how a command is added, and how its config is loaded."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from nanogpt.config import Config
from nanogpt.configfile import build_config, lay_overrides, load_layers

EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 75
EXIT_STOPPED = 130  # a shell's for Ctrl-C


class AddCommand(Protocol):
    """Adds a command by name; `run(arguments, overrides)` gives its exit code."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace, Sequence[str]], int], text: str
    ) -> argparse.ArgumentParser: ...


def load(target: Path, overrides: Sequence[str]) -> Config:
    """The config of a file or of a run's folder, with overrides laid over it."""
    file = target / "config.yaml" if target.is_dir() else target
    layers = load_layers(file)
    lay_overrides(layers, overrides)
    return build_config(layers, str(file))
