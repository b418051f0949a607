"""Launchers by name: each only starts workers. What a study's state is, is read from its folder."""

import importlib

from experiments.launchers.base import Job, Launcher, Workers
from nanogpt.config import UserError, did_you_mean

__all__ = ["LAUNCHERS", "Job", "Launcher", "Workers", "launcher_named"]

# By import path: a driver loads the one it uses, and needs the packages of that one only.
LAUNCHERS: dict[str, str] = {
    "local": "experiments.launchers.local:Local",
    "inprocess": "experiments.launchers.inprocess:InProcess",
    "slurm": "experiments.launchers.slurm:Slurm",
    "ray": "experiments.launchers.ray:Ray",
}


def launcher_named(name: str) -> Launcher:
    """Raises UserError with the known names for any other, and for one whose packages are not installed."""
    if name not in LAUNCHERS:
        raise UserError(f"launcher: no such launcher {name!r}{did_you_mean(name, LAUNCHERS)}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    try:
        launcher: type[Launcher] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"launcher: {name} cannot be used here: {error}") from None
    return launcher()
