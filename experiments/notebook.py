"""`ExperimentRunner`: grids, searches and study files from Python, as in a notebook. The same path as the commands."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.engine import INTERRUPTED
from experiments.launchers import Job
from experiments.launchers.settings import LauncherSettings, check_launcher, chosen_launcher
from experiments.lock import LOCK_NAME
from experiments.runner import Drifted, Prepared, StudyRun, locked, prepare
from experiments.standby import standing_by
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError

if TYPE_CHECKING:
    import pandas as pd

Launcher = str | Mapping[str, Any] | None


class ExperimentRunner:
    """Trains grids, searches and studies from Python. Results lie in `<output_root>/<name>/`.

    Every door returns the table of the runs when they are finished, or with `wait=False` at once a handle with
    `status()`, `progress()`, `wait()`, `stop()`, `resume()`, `report()` and `result()`, which shows itself at the end
    of a cell. Ctrl-C while a door waits lets the runs save checkpoints and gives their leases back; the same call, or
    `runner.last.resume()`, goes on. What is finished is never trained again. Anything wrong is one UserError, before
    anything starts.
    """

    def __init__(
        self,
        base_config_path: str | os.PathLike[str] | None = None,
        output_root: str | os.PathLike[str] = "results",
    ) -> None:
        self.base_config_path = None if base_config_path is None else Path(base_config_path)
        self.output_root = Path(output_root)
        self._handles: list[StudyRun] = []

    def run_grid(
        self,
        grid_name: str,
        base_params: Mapping[str, Any] | None = None,
        grid_params: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | int | None = None,
        wait: bool = True,
        jobs: int | None = None,
        launcher: Launcher = None,
        retry_failed: bool = False,
        drifted: Drifted = "stop",
        supervise: Mapping[str, Any] | None = None,
    ) -> Any:
        """Train every combination of `grid_params`, with `base_params` laid over the base config.

        Keys are dotted (`model.n_layer`), unique leaf names (`n_layer`) or nanoGPT's flags (`use_rope`). `launcher` is
        a name, or settings with `kind`; `supervise` is that section of a study; `jobs` are runs at a time.
        """
        base = self._base("run_grid")
        study = Study.from_grid(grid_name, base, base_params, grid_params, seeds, launcher, supervise)
        return self._run("run_grid", study, None, jobs, retry_failed, drifted, wait)

    def run_search(
        self,
        name: str,
        base_params: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        sampler: str | Mapping[str, Any] = "random",
        trials: int | None = None,
        seed: int | None = None,
        pruner: str | Mapping[str, Any] | None = None,
        grid_params: Mapping[str, Any] | None = None,
        filters: str | Sequence[str] | None = None,
        seeds: Sequence[int] | int | None = None,
        wait: bool = True,
        jobs: int | None = None,
        launcher: Launcher = None,
        retry_failed: bool = False,
        drifted: Drifted = "stop",
        supervise: Mapping[str, Any] | None = None,
    ) -> Any:
        """Search a `space` by so many `trials`: the keys `sampler`, `space`, `pruner` and `filter` of a study's sweep.

        `space` is as in `{"learning_rate": {"log": [1e-4, 1e-1]}, "n_layer": {"choice": [2, 4]}}`. `sampler` is
        `random`, `sobol` or `optuna`, or that section, as in `{"kind": "optuna", "optuna": {"sampler": "gp"}}`;
        `seed` is the search's, while every trial is trained once with each of `seeds`. `pruner` is that section, as in
        `{"kind": "successive_halving", "at": [0.25, 0.5]}`. Every combination of `grid_params` is searched on its own.
        """
        base = self._base("run_search")
        search: dict[str, Any] = {"sampler": _sampler(sampler, trials, seed), "space": space or {}}
        search |= {} if pruner is None else {"pruner": pruner}
        search |= {} if filters is None else {"filter": filters}
        study = Study.from_grid(name, base, base_params, grid_params, seeds, launcher, supervise, search)
        return self._run("run_search", study, None, jobs, retry_failed, drifted, wait)

    def run_study(
        self,
        path: str | os.PathLike[str],
        size: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        wait: bool = True,
        jobs: int | None = None,
        launcher: Launcher = None,
        retry_failed: bool = False,
        drifted: Drifted = "stop",
    ) -> Any:
        """Train a study file, at one of its `sizes` if named, with `overrides` for all runs; or go on with a results
        folder as it was locked. Needs no base config: the study has its own.

        `launcher` takes the place of the study's, whose section stays in force where only its own name is given.
        """
        if Path(path).is_dir():
            if size is not None or overrides:
                raise UserError(f"run_study: {path} is locked; give the study's YAML file for another size or setting")
            study: Study | Prepared = locked(Path(path))
        else:
            study = Study.load(path, overrides or {}, size)
        return self._run("run_study", study, launcher, jobs, retry_failed, drifted, wait)

    @property
    def last(self) -> StudyRun:
        """The handle of the latest call. Raises UserError when there was none."""
        if not self._handles:
            raise UserError("runner.last: nothing has been run by this runner yet")
        return self._handles[-1]

    def _base(self, door: str) -> Path:
        if self.base_config_path is None:
            raise UserError(
                f"{door}: base_config_path: ExperimentRunner was made without one; only run_study needs none"
            )
        return self.base_config_path

    def _run(
        self,
        door: str,
        study: Study | Prepared,
        launcher: Launcher,
        jobs: int | None,
        retry_failed: bool,
        drifted: Drifted,
        wait: bool,
    ) -> Any:
        if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
            raise UserError(f"{door}: jobs: expected a whole number of at least 1, got {jobs!r}")
        section = study.launcher if isinstance(study, Study) else study.study.lock.launcher
        settings = _settings(section, launcher, door)
        folder = self.output_root / study.name if isinstance(study, Study) else study.study.path
        with standing_by(folder, settings.kind == "local") as standby:
            prepared = prepare(study, folder, drifted, settings.elsewhere) if isinstance(study, Study) else study
            run = StudyRun(prepared, Job(settings, jobs, retry_failed, standby)).start()
        self._handles.append(run)
        return self._table(run) if wait else run

    def _table(self, run: StudyRun) -> "pd.DataFrame":
        try:
            run.wait(progress=True)
        except KeyboardInterrupt:
            print(f"interrupted; {GO_ON}", file=sys.stderr)
            raise
        if run.exit_status == INTERRUPTED:  # by `cancel`, or by Ctrl-C where the runs train in this very process
            print(f"ended before all was trained; {GO_ON}", file=sys.stderr)
        return run.result()

    def load_metrics(self, grid_name: str | None = None) -> "pd.DataFrame":
        """The table of one grid, by its exact name, or of all grids with the column `study`.

        A run belongs to a grid because the grid's lock lists it, not because of what its folder is called.
        """
        import pandas as pd

        from experiments.results import load

        if grid_name is not None:
            return load(StudyFolder(self.output_root / grid_name))
        folders = sorted(path.parent for path in self.output_root.glob(f"*/{LOCK_NAME}"))
        if not folders:
            raise UserError(f"{self.output_root}: no grid has been run here yet")
        tables = [load(StudyFolder(folder)).assign(study=folder.name) for folder in folders]
        return pd.concat(tables, ignore_index=True)


GO_ON = "the same call, or runner.last.resume(), goes on"


def _sampler(sampler: str | Mapping[str, Any], trials: int | None, seed: int | None) -> dict[str, Any]:
    section: dict[str, Any] = dict(sampler) if isinstance(sampler, Mapping) else {"kind": sampler}
    for key, value in (("trials", trials), ("seed", seed)):
        if value is not None and section.setdefault(key, value) != value:
            raise UserError(f"run_search: {key}: said twice, {value!r} and {section[key]!r} in the sampler")
    return section


def _settings(section: Mapping[str, Any] | None, launcher: Launcher, door: str) -> LauncherSettings:
    """The launcher of a study unless another is given, whose name keeps the study's section if it is of that kind."""
    if launcher is None:
        return chosen_launcher(section)
    asked = check_launcher(launcher, door)
    return asked if isinstance(launcher, Mapping) else chosen_launcher(section, asked.kind)
