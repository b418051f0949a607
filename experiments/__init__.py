"""The orchestrator: wants, launches, collects, fits, plots. Importing it loads nothing heavy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.notebook import ExperimentRunner

__all__ = ["ExperimentRunner"]


def __getattr__(name: str) -> object:
    # Deferred so that `import experiments` costs nothing for those who want only a part of it.
    if name == "ExperimentRunner":
        from experiments.notebook import ExperimentRunner

        return ExperimentRunner
    raise AttributeError(f"module 'experiments' has no attribute '{name}'")
