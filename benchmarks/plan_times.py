"""Are the plan's times true? Calibrate studies, run them, and put predicted and measured seconds side by side.

`python benchmarks/plan_times.py studies/quickstart.yaml studies/depth.yaml --jobs 2`. Per run the time of its record,
in all that of the `run` command without its report. A machine that does other work as well slows runs down as it
likes: there the CPU time of a run is what says how long it takes on a machine of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from experiments.commands.planning import crew_here
from experiments.launchers.base import available_cores
from experiments.planner.costs import Costs, costs_of
from experiments.planner.rates import Rates
from experiments.runner import prepare
from experiments.store import StudyFolder, published_record
from experiments.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--jobs", type=int, default=available_cores())
    arguments = parser.parse_args()
    for study in arguments.studies:
        with tempfile.TemporaryDirectory() as out:
            compare(study, Path(out), arguments.jobs)


def compare(path: Path, out: Path, jobs: int) -> None:
    """Print the table of one study."""
    command = [sys.executable, "-m", "experiments"]
    common = [str(path), "--out", str(out), "--jobs", str(jobs)]
    subprocess.run([*command, "plan", *common, "--calibrate"], check=True, stdout=subprocess.DEVNULL)
    costs = planned(path, out, jobs)
    began = time.perf_counter()
    subprocess.run([*command, "run", *common, "--no-report"], check=True, stdout=subprocess.DEVNULL)
    spent = time.perf_counter() - began
    found = StudyFolder(out / path.stem)
    print(f"{path.stem}, {jobs} at a time, {costs.setting.machine}")
    ratios: list[float] = []
    for run in sorted(found.runs(), key=lambda run: run.flops):
        record, told = published_record(found.folder(run)), costs.seconds_of(run)
        assert record is not None, f"{run.label} is not finished"
        assert told is not None, f"{run.label} was not calibrated"
        # What a run took over from a trunk is not of its own time.
        taken = record.environment.get("branched_from") or {"wall_seconds": 0.0, "step": 0}
        wall, cpu = record.wall_seconds - taken["wall_seconds"], record.cpu_seconds * (1 - taken["step"] / record.steps)
        ratios.append(told / cpu)
        print(f"  {run.label:<32} predicted {told:6.1f} s  wall {wall:6.1f} s  CPU {cpu:6.1f} s  {ratios[-1]:.2f}")
    middle = f"{median(ratios):.2f} in the middle, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  predicted over CPU seconds per run: {middle}")
    print(f"  in all: predicted {costs.seconds:.1f} s, wall {spent:.1f} s, {(costs.seconds or 0) / spent:.2f}")


def planned(path: Path, out: Path, jobs: int) -> Costs:
    """The costs as the plan tells them."""
    study = prepare(Study.load(path), out / path.stem, "stop", looks=True).study
    crew = crew_here(study, argparse.Namespace(launcher=None, jobs=jobs))
    return costs_of(study, crew, Rates(out))


if __name__ == "__main__":
    main()
