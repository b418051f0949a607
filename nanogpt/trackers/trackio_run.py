"""A run in Trackio: a local database ($TRACKIO_DIR, else below $HF_HOME), shown by `trackio show`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from nanogpt.config.tracker import Trackio
from nanogpt.trackers.tracker import LOSSES, Metrics, TrackedRun, Tracker


class TrackioRun(Tracker):
    """One Trackio run per record, named by the folder and the 8 digits of its id, since Trackio resumes by name."""

    def start(self, run: TrackedRun) -> int:
        import trackio

        assert isinstance(run.settings, Trackio)
        name = f"{run.name}-{run.id.rpartition('-')[2]}"
        # Neither a dashboard nor a thread that watches the machine; older versions know no such settings.
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        known = inspect.signature(trackio.init).parameters
        self._run = trackio.init(
            project=run.settings.project,
            name=name,
            group=run.settings.group,
            config={**run.config, **run.facts},
            resume="allow",
            **{key: value for key, value in quiet.items() if key in known},
        )
        return _last_step(run.settings.project, name, run.earlier_step)

    def log(self, lines: Sequence[Metrics]) -> None:
        for line in lines:
            losses = {f"by_flops/{name}": line[name] for name in LOSSES if name in line}
            self._run.log({**{k: v for k, v in line.items() if k != "step"}, **losses}, step=int(line["step"]))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._run.finish()


def _last_step(project: str, name: str, known: int) -> int:
    """The database knows better than our files what a killed attempt has left in it."""
    try:
        from trackio.sqlite_storage import SQLiteStorage

        return int(SQLiteStorage.get_max_step_for_run(project, name) or 0)
    except (ImportError, AttributeError):  # none of Trackio's promises
        return known
