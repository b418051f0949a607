"""Stand-ins for the packages of trackers that remember what they were shown, and how each kind's curve is read back."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Curve = list[tuple[int, float]]


class RecordedRun:
    """A W&B run: `points` are its lines, where they are in the end."""

    def __init__(self, points: list[dict[str, Any]], place: Path, summary: dict[str, Any], resumed: bool) -> None:
        self.points, self.dir, self.summary, self.resumed = points, str(place / "files"), summary, resumed
        self.metrics: dict[str, str | None] = {}
        self.exit_code: int | None = None
        self.preempting = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, line: dict[str, Any]) -> None:  # takes no step: W&B drops one that goes back
        self.points.append(line)
        self.summary.update(line)

    def mark_preempting(self) -> None:
        self.preempting = True

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandB(ModuleType):
    """`wandb` with a server, which may be away: then `init` online raises, as it does after a while."""

    def __init__(self, is_away: bool = False) -> None:
        super().__init__("wandb")
        self.run = None
        self.is_away, self.server, self.folders = is_away, {}, {}
        self.inits: list[dict[str, Any]] = []
        self.runs: list[RecordedRun] = []
        self.in_use: set[str] = set()
        self._count = itertools.count()

    def Settings(self, **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(**settings)

    def init(self, **asked: Any) -> RecordedRun:
        self.inits.append(asked)
        online = asked["mode"] == "online"
        if asked["id"] in self.in_use:
            raise RuntimeError(f"run ID {asked['id']} is in use")
        if online and self.is_away:
            self.in_use.add(asked["id"])  # as wandb 0.31 does
            raise RuntimeError("Run initialization has timed out after 10.0 sec.")
        kind = "run" if online else "offline-run"
        place = Path(asked["dir"]) / "wandb" / f"{kind}-{next(self._count)}-{asked['id']}"
        (place / "files").mkdir(parents=True)
        (place / f"run-{asked['id']}.wandb").touch()
        if not online:
            self.folders[place.resolve()] = points = []
            run = RecordedRun(points, place, {}, False)
        else:
            known = asked["id"] in self.server
            points, summary = self.server.setdefault(asked["id"], ([], {}))
            run = RecordedRun(points, place, summary, known)
        self.runs.append(run)
        return run

    def teardown(self, exit_code: int) -> None:
        self.in_use.clear()


class FakeTrackio(ModuleType):
    """`trackio`, whose database is a mapping from names to lines."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.database: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.is_full = False
        storage = ModuleType("trackio.sqlite_storage")
        storage.SQLiteStorage = SimpleNamespace(get_max_step_for_run=self._last)
        self.sqlite_storage = storage

    def _last(self, project: str, name: str) -> int | None:
        return max((line["step"] for line in self.database.get((project, name), [])), default=None)

    def init(self, project: str, name: str, group: str | None, config: dict[str, Any], resume: str) -> SimpleNamespace:
        assert resume == "allow"
        lines = self.database.setdefault((project, name), [])
        return SimpleNamespace(
            log=lambda metrics, step: None if self.is_full else lines.append({**metrics, "step": step}),
            finish=lambda: None,
            _is_local=True,
        )


def event_points(folder: Path, tag: str = "train_loss") -> Curve:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def install(kind: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], Curve]:
    """Put the stand-in of a kind in place; returns how the curve of a run is read from its tracker."""
    if kind == "wandb":
        wandb = FakeWandB()
        monkeypatch.setitem(sys.modules, "wandb", wandb)

        def newest(run: Any, tracker: Any) -> Curve:
            place = (run.attempt_folder / tracker.place).resolve()
            return [(line["step"], line["train_loss"]) for line in wandb.folders[place]]

        return newest
    if kind == "trackio":
        trackio = FakeTrackio()
        monkeypatch.setitem(sys.modules, "trackio", trackio)
        monkeypatch.setitem(sys.modules, "trackio.sqlite_storage", trackio.sqlite_storage)

        def stored(run: Any, tracker: Any) -> Curve:
            name = f"{run.name}-{run.id.rpartition('-')[2]}"
            return [(line["step"], line["train_loss"]) for line in trackio.database[run.settings.project, name]]

        return stored
    if kind == "tensorboard":
        return lambda run, tracker: event_points(run.folder / "tensorboard")
    raise AssertionError(f"recorders.py cannot read the curve of {kind}")
