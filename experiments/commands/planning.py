"""`plan`: what would be run, what it costs, what the fit will know; and on demand a design, or the next run to add."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.analysis.spec import check_fit_spec
from experiments.commands.head import plan_head
from experiments.commands.target import prepared_study
from experiments.devices import uses_gpu, visible_gpus
from experiments.launchers import Job
from experiments.launchers.settings import chosen_launcher
from experiments.lock import LockedRun
from experiments.planner.calibrate import calibrate
from experiments.planner.cautions import cautions
from experiments.planner.costs import Costs, costs_of, setting_of
from experiments.planner.crew import Crew, crew_of
from experiments.planner.forecast import Child, forecast, forecaster
from experiments.planner.page import budget_lines, forecast_lines, shapes_lines, time_lines, trunk_lines
from experiments.planner.rates import Rate, Rates, by_shape, finished_rates
from experiments.planner.settings import PlanSettings, check_plan
from experiments.planner.summary import drift_text
from experiments.results import RESULTS
from experiments.runner import Prepared
from experiments.store import StudyFolder
from experiments.trunks import shared_trunks
from nanogpt.config import UserError

SUCCESS = 0


def plan(arguments: argparse.Namespace) -> int:
    """Show what would be run, why, what it costs, and what the fit will know of its parameters."""
    if any(getattr(arguments, key, None) for key in ("propose", "next")):
        return _plan(arguments)
    with forecaster() as child:
        return _plan(arguments, child)


def _plan(arguments: argparse.Namespace, child: Child | None = None) -> int:
    out = None
    if getattr(arguments, "propose", None) and arguments.out.suffix:
        if arguments.out.suffix not in (".yaml", ".yml"):
            raise UserError(f"command line: --out: {arguments.out}: a proposed study is a file NAME.yaml")
        out, arguments.out = arguments.out, RESULTS  # where the proposed study goes; results stay where they are
    prepared = prepared_study(arguments)
    settings = settings_of(prepared.study, arguments)
    if getattr(arguments, "propose", None):
        from experiments.planner.propose import propose

        return propose(prepared, arguments, settings, out)
    if getattr(arguments, "next", None):
        from experiments.planner.nextrun import next_text

        print(next_text(prepared.study, arguments.next, settings, _speeds(prepared.study, arguments)))
        return SUCCESS
    print(plan_page(prepared, arguments, settings, child))
    return SUCCESS


def settings_of(study: StudyFolder, arguments: argparse.Namespace) -> PlanSettings:
    """The study's `plan:`, with what the command line says otherwise."""
    given = {key: getattr(arguments, key, None) for key in ("budget", "flops", "price", "power", "smallest")}
    changed = {key: value for key, value in given.items() if value is not None}
    check_plan(changed, "command line", "--")
    return check_plan({**study.lock.plan, **changed}, str(study.path))


def plan_page(
    prepared: Prepared, arguments: argparse.Namespace, settings: PlanSettings, child: Child | None = None
) -> str:
    """The whole page."""
    study, runs = prepared.study, prepared.study.runs()
    crew = crew_here(study, arguments)
    lines = [plan_head(study, crew.slots)[1]]
    if runs:
        costs = known_costs(study, crew, arguments.out, bool(getattr(arguments, "calibrate", False)))
        calibrated = bool(getattr(arguments, "calibrate", False))
        spec = check_fit_spec(study.lock.fit) if study.lock.fit is not None else None
        told = forecast(study, spec, runs, child) if spec is not None and costs.left else None
        lines += time_lines(costs, settings, calibrated) + budget_lines(costs, settings)
        lines += trunk_lines(shared_trunks(runs), runs) + forecast_lines(told)
        lines += [f"  warning      {caution}" for caution in cautions(runs, spec, told)]
        lines += ["", *shapes_lines(runs, costs)]
    elif any(value is not None for value in (settings.budget, settings.flops, settings.price, settings.power)):
        lines.append("  budget       what the study costs is known once its first runs are proposed")
    if any(map(uses_gpu, runs)) and not visible_gpus():
        lines.append("  note         these runs want a GPU, and this machine has none")
    if prepared.drifted:
        lines.append(f"  drifted, so `run` will ask:\n{drift_text(prepared.drifted)}")
    return "\n".join(filter(None, lines))


def crew_here(study: StudyFolder, arguments: argparse.Namespace) -> Crew:
    """The crew that `run` would start with these arguments."""
    settings = chosen_launcher(study.lock.launcher, arguments.launcher)
    wanting = any(map(uses_gpu, study.runs())) and not visible_gpus()
    return crew_of(Job(settings, arguments.jobs), study, pretend_gpus=wanting)


def _speeds(study: StudyFolder, arguments: argparse.Namespace) -> Callable[[Sequence[LockedRun]], dict[str, Rate]]:
    """The speeds of runs that a study may get, measured with --calibrate where they are not known."""
    crew, rates = crew_here(study, arguments), Rates(arguments.out)

    def speeds(runs: Sequence[LockedRun]) -> dict[str, Rate]:
        shapes, setting = by_shape(runs), setting_of(crew, runs)
        known = finished_rates(study, study.states())
        if arguments.calibrate:
            calibrate({shape: group[0] for shape, group in shapes.items() if shape not in known}, setting, rates, say)
        kept = {shape: rate for shape in shapes if (rate := rates.get(shape, setting)) is not None}
        return {**kept, **known}

    return speeds


def known_costs(study: StudyFolder, crew: Crew, root: Path, measure: bool) -> Costs:
    """The costs at the speeds that are known; with `measure`, those that are not are measured first."""
    rates, problems = Rates(root), {}
    if measure:
        finished = finished_rates(study, study.states())
        wanted = {shape: runs[0] for shape, runs in by_shape(study.runs()).items() if shape not in finished}
        problems = calibrate(wanted, setting_of(crew, study.runs()), rates, say)
    return costs_of(study, crew, rates, problems)


def say(line: str) -> None:
    """What takes a while is announced, apart from the page itself."""
    print(line, file=sys.stderr, flush=True)
