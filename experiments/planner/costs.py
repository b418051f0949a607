"""What is left of a study costs: seconds per run from measured speed, wall time on the launcher, money and energy."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.lock import LockedRun
from experiments.planner.amounts import energy
from experiments.planner.crew import Crew, makespan
from experiments.planner.rates import Rate, Rates, Setting, by_shape, finished_rates, machine_name, shape_key
from experiments.planner.settings import PlanSettings
from experiments.store import FINISHED, StudyFolder
from experiments.trunks import shared_trunks, taken_steps


@dataclass(frozen=True)
class Costs:
    """`rates` by shape, as far as they are measured; `seconds` of the runs left, None while a shape is not."""

    crew: Crew
    setting: Setting
    rates: dict[str, Rate]
    left: list[LockedRun]
    unmeasured: int
    seconds: float | None
    problems: dict[str, str] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)  # steps that a run takes from another one's trunk, by its id

    def seconds_of(self, run: LockedRun) -> float | None:
        """Predicted wall time of one run; None while its shape is not measured."""
        rate = self.rates.get(shape_key(run))
        return None if rate is None else rate.seconds(run, self.taken.get(run.id, 0))

    @property
    def device_hours(self) -> float | None:
        """Devices are held, and paid for, from the first run's start to the last one's end."""
        return None if self.seconds is None else self.seconds / 3600 * self.crew.devices


def setting_of(crew: Crew, runs: Sequence[LockedRun]) -> Setting:
    """What a speed must have been measured for to hold for this crew."""
    return Setting(machine_name(runs), crew.slots, crew.threads)


def costs_of(study: StudyFolder, crew: Crew, rates: Rates, problems: dict[str, str] | None = None) -> Costs:
    """The costs of what is left of a study. Speeds of its own finished runs go before those of a calibration."""
    runs, states = study.runs(), study.states()
    left = [run for run in runs if states[run.id].status not in FINISHED]
    setting = setting_of(crew, runs)
    known = finished_rates(study, states)
    for shape in by_shape(runs):
        if shape not in known and (rate := rates.get(shape, setting)) is not None:
            known[shape] = rate
    return reckoned(left, crew, setting, known, problems or {})


def reckoned(
    left: list[LockedRun], crew: Crew, setting: Setting, known: dict[str, Rate], problems: dict[str, str]
) -> Costs:
    """The costs of runs at known speeds."""
    shapes = {run.id: shape_key(run) for run in left}
    unmeasured = len({shape for shape in shapes.values() if shape not in known})
    taken = taken_steps(shared_trunks(left))

    def seconds_of(run: LockedRun) -> float:
        return known[shapes[run.id]].seconds(run, taken.get(run.id, 0))

    seconds = None if unmeasured else makespan(left, seconds_of, crew)
    return Costs(crew, setting, known, left, unmeasured, seconds, problems, taken)


def money_lines(costs: Costs, settings: PlanSettings) -> list[str]:
    """Money and energy, where a price and a power are given."""
    hours, crew = costs.device_hours, costs.crew
    if hours is None or not costs.left:
        return []
    held = f"{crew.devices} {crew.device}{'s' * (crew.devices > 1)}"
    lines = []
    if settings.price is not None:
        bill = f"{settings.currency} {hours * settings.price:.3g}"
        lines.append(f"{bill} ({held}, {settings.currency} {settings.price:g} an hour each, held throughout)")
    if settings.power is not None:
        lines.append(f"{energy(hours * settings.power)} ({held} at {settings.power:g} W)")
    return lines
