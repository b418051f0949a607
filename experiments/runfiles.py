"""The files of a run's folder that a person can rerun it with: config.yaml and launch.sh, written by who claims it."""

import contextlib
from pathlib import Path
from typing import Any

from experiments.lock import LockedRun
from nanogpt.config import UserError, why_cut_matters
from nanogpt.configfile import dump_yaml, load_yaml
from nanogpt.record import launch_script, write_atomic

CONFIG_NAME = "config.yaml"
LAUNCH_NAME = "launch.sh"


def write_run_files(
    folder: Path, run: LockedRun, threads: int | None = None, micro_batch_size: int | None = None, study: str = ""
) -> None:
    """Write config.yaml and launch.sh, before the attempt starts.

    The thread count of the first attempt is kept, since another one changes the last bits of the losses; so is a
    micro-batch that was cut because memory ran out, unless a smaller one is asked for. A tracker shows the runs of
    `study` as one group.
    """
    runtime, earlier = dict(run.config["runtime"]), _earlier_runtime(folder)
    if runtime.get("threads") is None:
        runtime["threads"] = earlier.get("threads") or threads
    cut = micro_batch_size or earlier.get("micro_batch_size")
    if cut is not None and why_cut_matters(run.config["model"]) is None:
        runtime["micro_batch_size"] = cut
    runtime["tracker"] = grouped(runtime.get("tracker") or {"kind": "none"}, study)
    comment = f"# The run {run.name}, fully resolved; `sh launch.sh` trains it.\n"
    # Both come from the lock: after a power failure the next claim writes them again.
    write_atomic(folder / CONFIG_NAME, comment + dump_yaml({**run.config, "runtime": runtime}), durable=False)
    write_atomic(folder / LAUNCH_NAME, launch_script(run.name), durable=False)
    (folder / LAUNCH_NAME).chmod(0o755)


def grouped(tracker: dict[str, Any], study: str) -> dict[str, Any]:
    """A `tracker` section with the study as its group, where it knows groups and names none."""
    return {**tracker, "group": study} if study and tracker.get("group", "") is None else tracker


def current_config(folder: Path, run: LockedRun) -> dict[str, Any]:
    """The config as the last attempt had it: the lock's, with the threads and the micro-batch it was given since."""
    return {**run.config, "runtime": {**run.config["runtime"], **_earlier_runtime(folder)}}


def _earlier_runtime(folder: Path) -> dict[str, Any]:
    """What an earlier attempt settled; a damaged file has nothing to say, and is written anew."""
    with contextlib.suppress(UserError):
        if (folder / CONFIG_NAME).exists():
            runtime = load_yaml(folder / CONFIG_NAME).data.get("runtime")
            if isinstance(runtime, dict):
                return {key: runtime[key] for key in ("threads", "micro_batch_size") if runtime.get(key) is not None}
    return {}
