"""Which class shows a run where. Named as text, so that no package of a tracker is loaded unless it is used."""

import ast
import difflib
import importlib
import importlib.util
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.config.tracker import AnyTracker, CustomTracker
from nanogpt.trackers.reach import check_wandb_mode
from nanogpt.trackers.tracker import Metrics, TrackedRun, Tracker

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
    tracker = operator.attrgetter(name)(importlib.import_module(module))()
    lacks = [method for method in ("start", "log", "finish") if not callable(getattr(tracker, method, None))]
    if lacks:
        raise TypeError(f"{module}:{name} makes a {type(tracker).__name__} without {', '.join(lacks)}")
    return tracker if isinstance(tracker, Tracker) else _Lent(tracker)


class _Lent(Tracker):
    """Someone's class that has the three methods without being a `Tracker`."""

    def __init__(self, methods: Any) -> None:
        self._methods = methods

    def start(self, run: TrackedRun) -> int:
        held: int = self._methods.start(run)
        for name in ("upload", "place", "warning"):
            setattr(self, name, getattr(self._methods, name, ""))
        return held

    def log(self, lines: Sequence[Metrics]) -> None:
        self._methods.log(lines)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._methods.finish(status, summary)


def check_installed(settings: AnyTracker) -> None:
    """Raises UserError when the package behind a tracker is not installed, or cannot work as asked. Loads nothing."""
    if settings.kind == "none":
        return
    if isinstance(settings, CustomTracker):
        module, _, name = settings.factory.partition(":")
        if not _is_there(module):
            raise UserError(f"runtime.tracker.factory: {settings.factory}: no module {module} on Python's path")
        _check_named(settings.factory, module, name.partition(".")[0])
    elif not _is_there(settings.kind):
        advice = f"pip install 'nanogpt-scaling[{settings.kind}]', or set tracker: none"
        raise UserError(f"runtime.tracker: {settings.kind}: the package {settings.kind} is not installed; {advice}")
    elif settings.kind == "wandb":
        check_wandb_mode()


def _check_named(factory: str, module: str, name: str) -> None:
    """Raises UserError when the source of a module never names what is asked of it. Reads it; loads nothing."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return
    try:
        nodes = list(ast.walk(ast.parse(Path(spec.origin).read_bytes())))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"runtime.tracker.factory: {factory}: {spec.origin} cannot be read ({error})") from None
    names = {str(getattr(node, key)) for node in nodes for key in ("name", "asname", "id") if hasattr(node, key)}
    if names.isdisjoint({name, "*", "__getattr__"}):
        near = difflib.get_close_matches(name, sorted(names), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"runtime.tracker.factory: {factory}: no {name} in {spec.origin}{advice}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
