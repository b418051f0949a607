"""`plan --propose`: a study of a chosen design that fits a budget, written as a file and held against its own plan."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.analysis.spec import FitSpec, check_fit_spec
from experiments.launchers import Job
from experiments.launchers.settings import chosen_launcher
from experiments.lock import LockedRun
from experiments.planner.amounts import amount, duration, short
from experiments.planner.calibrate import calibrate
from experiments.planner.cautions import cautions
from experiments.planner.costs import reckoned, setting_of
from experiments.planner.crew import Crew, crew_of
from experiments.planner.designs import DESIGNS, Design, Law, Refused
from experiments.planner.forecast import Forecast, fitted, forecast, guess_of
from experiments.planner.ladder import Rung, Studied, ladder, studied
from experiments.planner.page import forecast_lines
from experiments.planner.rates import Rate, Rates, Setting, by_shape, shape_key
from experiments.planner.settings import PlanSettings
from experiments.runner import Prepared, prepare
from experiments.store import StudyFolder
from experiments.study import Study
from nanogpt.config import UserError, os_reason
from nanogpt.config.training import HORIZONS
from nanogpt.configfile import dump_yaml, load_yaml
from nanogpt.record import write_atomic

FIRST_GUESS = 1e9  # FLOPs a second
ENOUGH = 0.85  # of a time budget that a design must use, or a dearer one is looked for
FASTEST = 1e15  # and no machine that this is likely to run on trains faster
TRIES = 12
SPARE = 0.97  # of a time budget is aimed at: a calibration repeated is not the same to the last percent
Say = Callable[[str], None]


def propose(
    prepared: Prepared, arguments: argparse.Namespace, settings: PlanSettings, out: Path | None, say: Say = print
) -> int:
    """Write the study, to `out` where that is given, and say what it is. Raises UserError where no design fits."""
    target = _target(arguments, prepared.study, out)
    if settings.budget is None and settings.flops is None:
        raise UserError("command line: --propose: needs a budget: --budget 3h, or --flops 1e18")
    study = Study.load(arguments.study, arguments.set, arguments.size)
    law, source = expected_law(prepared.study)
    maker = _Maker(prepared.study, arguments, settings, DESIGNS[arguments.propose], law, Rates(arguments.out))
    try:
        design = maker.design()
    except Refused as refusal:
        least = f"the study's smallest, {short(maker.studied.least)} parameters (--smallest N allows less)"
        why = f"{refusal}{'' if settings.smallest else f'; shapes start at {least}'}"
        raise UserError(f"{arguments.study}: --propose {arguments.propose}: refused: {why}") from None
    text = study_text(design, study, arguments, settings, target)
    proposed = _checked(text, target, maker, settings)
    say(f"{target}: {len(design.cells)} runs, {design.summary}")
    say(f"  law          {source}")
    say(f"  to train     {amount(sum(run.flops for run in proposed.runs()), 'FLOP')}" + maker.told(proposed.runs()))
    told: Forecast = forecast(proposed, check_fit_spec(proposed.lock.fit or {}), proposed.runs())
    say("\n".join(forecast_lines(told)))
    outside = maker.studied.told([run.n_params_non_embedding for run in proposed.runs()])
    for caution in filter(None, [outside, *cautions(proposed.runs(), law_spec(proposed), told)]):
        say(f"  warning      {caution}")
    say(f"look at it with: {shlex.join(['python', '-m', 'experiments', 'plan', str(target)])}")
    return 0


def _target(arguments: argparse.Namespace, study: StudyFolder, out: Path | None) -> Path:
    """Where the study is written: `--out FILE.yaml`, else beside the one it comes from."""
    if Path(arguments.study).is_dir():
        raise UserError(f"command line: --propose: {arguments.study} is locked; give the study's YAML file instead")
    given = out or Path(arguments.study).with_name(f"{study.lock.name}-{arguments.propose}.yaml")
    if given.exists():
        raise UserError(f"{given}: exists already; name another file with --out FILE.yaml")
    return given


def expected_law(study: StudyFolder) -> tuple[Law, str]:
    """The Chinchilla law that a design is centred on, from results or a guess, and where it comes from."""
    spec = law_spec(study)
    found = fitted(spec, str(study.path) if study.path.exists() else None)
    if found is not None and all(value > 0 for value in found.params.values()):
        return dict(found.params), f"the fit to {len(found.points)} finished runs"
    guess = guess_of(study.lock, spec)
    if guess.params is None or not {"E", "A", "B", "alpha", "beta"} <= set(guess.params):
        raise UserError(
            f"{study.lock.name}: --propose: no law is expected of {spec.y}; say one as `plan: {{prior: ...}}`"
        )
    return guess.params, guess.source


def law_spec(study: StudyFolder) -> FitSpec:
    """The study's fit where it is a Chinchilla law, else that law with its defaults."""
    spec = check_fit_spec(study.lock.fit) if study.lock.fit is not None else FitSpec()
    return spec if spec.law == "chinchilla" and not any(spec.chosen_columns().values()) else FitSpec()


@dataclass
class _Maker:
    """Makes designs of one kind until one fits the budget, in FLOPs or in measured time."""

    study: StudyFolder
    arguments: argparse.Namespace
    settings: PlanSettings
    make: Callable[..., Design]
    law: Law
    rates: Rates

    def design(self) -> Design:
        """The design. Raises Refused where the budget holds none."""
        runs = self.study.runs()
        if not runs:
            raise UserError(f"{self.arguments.study}: --propose: the study has no run yet to take a shape from")
        most = self.settings.flops or FASTEST * (self.settings.budget or 0.0)
        rungs = self.studied.without_smaller(ladder(runs, self._largest(runs[0], most)))
        if self.settings.budget is None:
            return self.make(most, self.law, rungs)
        return self._in_time(most, rungs, self.settings.budget * SPARE)

    @property
    def studied(self) -> Studied:
        """The sizes of the study that a design starts from."""
        return studied(self.study.runs(), self.settings.smallest)

    def _largest(self, run: LockedRun, flops: float) -> float:
        """A size beyond all that a budget could be best spent on, by 6ND."""
        total = self.law["alpha"] + self.law["beta"]
        g = (self.law["alpha"] * self.law["A"] / (self.law["beta"] * self.law["B"])) ** (1 / total)
        return max(16.0 * g * (flops / 6) ** (self.law["beta"] / total), 64.0 * run.n_params_non_embedding)

    def _in_time(self, most: float, rungs: list[Rung], seconds: float) -> Design:
        """The dearest design whose measured time stays within the budget, between one that is refused or has time to
        spare and one that takes too long."""
        low, high, flops = 0.0, math.inf, min(most, self._first_guess(seconds))
        best, refusal, slow = None, Refused("there is none smaller"), ""
        for _ in range(TRIES):
            try:
                design = self.make(flops, self.law, rungs)
            except Refused as problem:
                low, refusal = max(low, flops), problem
                scaled = flops * 2
            else:
                spent = self.seconds(design.runs)
                scaled = flops * min(30.0, 0.97 * seconds / spent)
                if spent > seconds:
                    high = flops
                    slow = f"one of {amount(design.flops, 'FLOP')} takes {duration(spent)} here, and a "
                else:
                    low, best = flops, design
                    if spent >= ENOUGH * seconds or flops >= most:
                        break
            if high < low * 1.03 or low >= most:
                break
            flops = min(most, scaled if low < scaled < high else math.sqrt(low * high) if low else high / 2)
        if best is None:
            told = f"{slow}smaller one is refused: " if slow else ""
            raise Refused(f"no such design takes less than {duration(seconds)}: {told}{refusal}")
        return best

    def _first_guess(self, seconds: float) -> float:
        """What the study's middle shape would train in that time, alone in every slot."""
        runs = sorted(self.study.runs(), key=lambda run: run.flops_per_token)
        crew, run = self.crew(runs), runs[len(runs) // 2]
        setting = setting_of(crew, runs)
        calibrate({shape_key(run): run}, setting, self.rates, _aside)
        rate = self.rates.get(shape_key(run), setting)
        return seconds * crew.at_a_time * (rate.tokens_per_second * run.flops_per_token if rate else FIRST_GUESS)

    def crew(self, runs: list[LockedRun]) -> Crew:
        """The crew for runs of a design: as for the study, but there are other runs."""
        lock = self.study.lock.model_copy(update={"runs": runs, "search": None})
        launcher = chosen_launcher(lock.launcher, self.arguments.launcher)
        return crew_of(Job(launcher, self.arguments.jobs), StudyFolder(self.study.path / "proposed", lock))

    def seconds(self, runs: list[LockedRun]) -> float:
        """Predicted wall time, of shapes measured for the purpose."""
        crew = self.crew(runs)
        setting = setting_of(crew, runs)
        problems = calibrate({shape: group[0] for shape, group in by_shape(runs).items()}, setting, self.rates, _aside)
        if problems:
            raise Refused(f"a shape of it cannot be measured here: {next(iter(problems.values()))}")
        found = reckoned(runs, crew, setting, self._known(runs, setting), {})
        assert found.seconds is not None
        return found.seconds

    def _known(self, runs: list[LockedRun], setting: Setting) -> dict[str, Rate]:
        rates = {shape_key(run): self.rates.get(shape_key(run), setting) for run in runs}
        return {shape: rate for shape, rate in rates.items() if rate is not None}

    def told(self, runs: list[LockedRun]) -> str:
        """The time in words, where it was asked for."""
        return f", {duration(self.seconds(runs))} ({self.crew(runs)})" if self.settings.budget is not None else ""


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def study_text(
    design: Design, study: Study, arguments: argparse.Namespace, settings: PlanSettings, target: Path
) -> str:
    """The proposed study as YAML: the settings of the one it comes from, and the design's runs one by one."""
    given = [f"a budget of {duration(settings.budget)}"] if settings.budget is not None else []
    given += [f"{amount(settings.flops, 'FLOP')}"] if settings.flops is not None else []
    data: dict[str, Any] = {
        "question": study.question,
        "hypothesis": "The loss follows E + A/N^alpha + B/D^beta, so the smaller runs predict the largest ones.",
        **_settings_of(study, arguments, target),
        "fit": {"law": "chinchilla", "holdout": _holdout(design)},
        **({"launcher": study.launcher} if study.launcher else {}),
        **({"supervise": study.supervise} if study.supervise else {}),
        "plan": {**study.plan, **_budget(settings)},
    }
    head = f"# Design {design.kind} for {' and '.join(given)}: {design.summary}.\n"
    head += f"# Proposed from {os.path.basename(arguments.study)}; its other factors stay as in the base.\n"
    points = "".join(f"    - {_flow({**cell.rung.settings, cell.horizon: cell.value})}\n" for cell in design.cells)
    return f"{head}{dump_yaml(data)}sweep:\n  points:\n{points}"


def _holdout(design: Design) -> dict[str, Any]:
    """The largest runs, to be predicted: a whole budget of an IsoFLOP design, a fifth of the runs of another."""
    if design.kind != "isoflop":
        return {"by": "flops", "fraction": 0.2}
    *_, second, top = sorted({cell.value for cell in design.cells})
    return {"by": "flops", "below": _plain(float(f"{math.sqrt(second * top):.3g}"))}


def _plain(value: float) -> float:
    """A whole number without a point."""
    return int(value) if value == int(value) else value


def _budget(settings: PlanSettings) -> dict[str, Any]:
    named = {"budget": settings.budget, "flops": settings.flops, "price": settings.price, "power": settings.power}
    return {key: _plain(value) for key, value in named.items() if value is not None}


def _flow(point: Mapping[str, Any]) -> str:
    """One point on one line. YAML 1.1 reads 1e+12 as a number only with a dot in it."""
    words = {key: f"{value:.4e}" if key == "flops" else f"{value:g}" if isinstance(value, float) else str(value)
             for key, value in point.items()}  # fmt: skip
    return "{" + ", ".join(f"{key}: {word}" for key, word in words.items()) + "}"


def _settings_of(study: Study, arguments: argparse.Namespace, target: Path) -> dict[str, Any]:
    """The base and the settings over it; written out whole where a size or the command line has changed them."""
    file = load_yaml(arguments.study)
    if arguments.size is None and not study.overrides:
        found = {"config": dict(file.data["config"])} if file.data.get("config") else {}
        base = file.data.get("base")
        if base and (file.path.parent / base).is_file():
            base = os.path.relpath(file.path.parent / base, target.parent)
        return {**({"base": base} if base else {}), **found}
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in study.layers.tree.items()}
    train = {key: value for key, value in tree.get("train", {}).items() if key not in HORIZONS}
    return {"config": {**tree, "train": train, **{flag: value for flag, (value, _) in study.layers.deferred.items()}}}


def _checked(text: str, target: Path, maker: _Maker, settings: PlanSettings) -> StudyFolder:
    """Write the file once its own runs are known to stay within the budget."""
    draft = target.with_name(f"{target.stem}.draft-{os.getpid()}.yaml")  # no dot: results are named by it
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(draft, text)
        found = prepare(Study.load(draft), maker.study.path.parent / target.stem, elsewhere=True).study
        runs = found.runs()
        flops = sum(run.flops for run in runs)
        assert settings.flops is None or flops <= settings.flops, (flops, settings.flops)
        assert settings.budget is None or maker.seconds(runs) <= settings.budget, maker.seconds(runs)
        draft.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {os_reason(error, target)}") from None
    finally:
        draft.unlink(missing_ok=True)
    return found
