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
        self._project, self._name = run.settings.project, name
        self._shown = _last_step(self._project, name, run.earlier_step)
        return self._shown

    def log(self, lines: Sequence[Metrics]) -> None:
        for line in lines:
            losses = {f"by_flops/{name}": line[name] for name in LOSSES if name in line}
            self._run.log({**{k: v for k, v in line.items() if k != "step"}, **losses}, step=int(line["step"]))
            self._shown = int(line["step"])

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Raises OSError when the database lacks lines: Trackio only warns of a full disk, and calls that an end."""
        self._run.finish()
        if getattr(self._run, "_is_local", False):  # what went to a server is not in it
            held = _last_step(self._project, self._name, self._shown)
            if held < self._shown:
                raise OSError(f"Trackio's database ends at step {held} of {self._shown}; is its disk full?")


def _last_step(project: str, name: str, known: int) -> int:
    """The database knows better than our files what a killed attempt has left in it."""
    try:
        from trackio.sqlite_storage import SQLiteStorage

        return int(SQLiteStorage.get_max_step_for_run(project, name) or 0)
    except (ImportError, AttributeError):  # none of Trackio's promises
        return known
