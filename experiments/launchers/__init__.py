"""Launchers by name: each only starts workers. What a study's state is, is read from its folder."""

from experiments.launchers.base import Job, Launcher, Workers
from experiments.launchers.inprocess import InProcess
from experiments.launchers.local import Local
from nanogpt.config import UserError, did_you_mean

__all__ = ["LAUNCHERS", "Job", "Launcher", "Workers", "launcher_named"]

LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "inprocess": InProcess}


def launcher_named(name: str) -> Launcher:
    """Raises UserError with the known names for any other."""
    if name not in LAUNCHERS:
        raise UserError(f"launcher: no such launcher {name!r}{did_you_mean(name, LAUNCHERS)}")
    return LAUNCHERS[name]()
