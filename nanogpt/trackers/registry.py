"""Which class shows a run where. Named as text, so that no package of a tracker is loaded unless it is used."""

import importlib
import importlib.util

from nanogpt.config import UserError
from nanogpt.config.tracker import AnyTracker, CustomTracker
from nanogpt.trackers.tracker import Tracker

TRACKERS = {
    "wandb": "nanogpt.trackers.wandb_run:WandBRun",
    "tensorboard": "nanogpt.trackers.tensorboard_run:TensorBoardRun",
    "trackio": "nanogpt.trackers.trackio_run:TrackioRun",
}


def make_tracker(settings: AnyTracker) -> Tracker:
    """A tracker of the settings' kind. Raises whatever its module raises when it is loaded."""
    module, _, name = (settings.factory if isinstance(settings, CustomTracker) else TRACKERS[settings.kind]).partition(
        ":"
    )
    return getattr(importlib.import_module(module), name)()


def check_installed(settings: AnyTracker) -> None:
    """Raises UserError when the package behind a tracker is not installed. Loads nothing."""
    if settings.kind == "none":
        return
    if isinstance(settings, CustomTracker):
        module = settings.factory.partition(":")[0]
        if not _is_there(module):
            raise UserError(f"runtime.tracker.factory: {settings.factory}: no module {module} on Python's path")
    elif not _is_there(settings.kind):
        advice = f"pip install 'nanogpt-scaling[{settings.kind}]', or set tracker: none"
        raise UserError(f"runtime.tracker: {settings.kind}: the package {settings.kind} is not installed; {advice}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
