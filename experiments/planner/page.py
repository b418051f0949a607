"""The plan as a page for people: shapes, time, money, shared trunks, the fit to come, and what to beware of."""

from collections.abc import Callable, Mapping, Sequence

from experiments.factors import short_names, value_text
from experiments.lock import LockedRun
from experiments.planner.amounts import amount, duration, runs_words, short, table_lines
from experiments.planner.cautions import COLLINEAR
from experiments.planner.costs import Costs, money_lines
from experiments.planner.forecast import AHEAD, Forecast
from experiments.planner.rates import by_shape, shape_key
from experiments.planner.settings import PlanSettings
from experiments.trunks import Trunk

MOST_SHAPES = 24
INDENT = " " * 15


def shapes_lines(runs: Sequence[LockedRun], costs: Costs) -> list[str]:
    """A row per shape: what a run of it is, and what it costs."""
    shapes = by_shape(runs)
    names = shape_names(shapes)
    timed = bool(costs.rates)
    head = ["shape", "params", "runs", "tokens a run", "FLOPs a run", "FLOPs in all", "memory"]
    head += ["tokens/s", "FLOP/s", "time a run"] if timed else []
    rows = [_row(names[shape], group, costs, timed) for shape, group in shapes.items()]
    lines = table_lines(head, rows[:MOST_SHAPES])
    return lines + ([f"  ... and {len(rows) - MOST_SHAPES} more shapes"] if len(rows) > MOST_SHAPES else [])


def _row(name: str, group: Sequence[LockedRun], costs: Costs, timed: bool) -> list[str]:
    first = group[0]
    cells = [name, short(first.n_params_non_embedding), str(len(group)), _span([run.tokens for run in group])]
    cells += [_span([run.flops for run in group]), short(sum(run.flops for run in group))]
    cells += [amount(max(run.memory_bytes for run in group), "B")]
    if timed:
        seconds = [spent for run in group if (spent := costs.seconds_of(run)) is not None]
        rate = costs.rates.get(shape_key(first))
        speeds = [rate.tokens_per_second, rate.tokens_per_second * first.flops_per_token] if rate else []
        cells += [*map(short, speeds), _times(seconds)] if rate else ["?", "?", "?"]
    return cells


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return short(low) if low == high else f"{short(low)} to {short(high)}"


def _times(seconds: Sequence[float]) -> str:
    low, high = duration(min(seconds)), duration(max(seconds))
    return low if low == high else f"{low} to {high}"


def shape_names(shapes: Mapping[str, Sequence[LockedRun]]) -> dict[str, str]:
    """What tells each shape from the others, in the words of the sweep; the model's size where nothing varies."""
    values = {shape: group[0].factors for shape, group in shapes.items()}
    constant = [key for key in next(iter(values.values()), {}) if all(map(_is_constant(key), shapes.values()))]
    varying = [key for key in constant if len({str(found.get(key)) for found in values.values()}) > 1]
    if not varying:
        return {shape: _size(group[0]) for shape, group in shapes.items()}
    names = short_names(varying)
    return {
        shape: " ".join(f"{names[key]}={value_text(found[key])}" for key in varying) for shape, found in values.items()
    }


def _is_constant(key: str) -> Callable[[Sequence[LockedRun]], bool]:
    return lambda group: all(run.factors.get(key) == group[0].factors.get(key) for run in group)


def _size(run: LockedRun) -> str:
    model = run.config["model"]
    depth = f"{model['n_layer']} layers" if model["n_layer"] is not None else str(model["trunk"]["kind"])
    return f"{depth}, {model['n_embd']} wide"


def time_lines(costs: Costs, settings: PlanSettings, calibrated: bool) -> list[str]:
    """Wall time of what is left, and how it was found."""
    if not costs.left:
        return []
    if costs.seconds is None:
        unknown = f"  time         unknown: {_unmeasured(costs, calibrated)}"
        return [unknown, f"{INDENT}would run on {costs.crew}{_elsewhere(costs)}", *_unpriced(settings)]
    longest = max(spent for run in costs.left if (spent := costs.seconds_of(run)) is not None)
    lines = [f"  time         {duration(costs.seconds)} for {runs_words(len(costs.left))} ({costs.crew}); "
             f"the longest takes {duration(longest)}"]  # fmt: skip
    sources = sorted({rate.source for rate in costs.rates.values()})
    lines.append(f"{INDENT}speeds from {' and '.join(sources)}, {costs.setting.machine}{_elsewhere(costs)}")
    return lines + [label + line for label, line in zip(_priced(settings), money_lines(costs, settings), strict=True)]


def _elsewhere(costs: Costs) -> str:
    return "" if costs.crew.here else f"; {costs.crew.launcher} may train elsewhere, at another speed, and queue"


def _priced(settings: PlanSettings) -> list[str]:
    """The heads of the lines that a price and a power ask for."""
    given = {"  money        ": settings.price, "  energy       ": settings.power}
    return [label for label, value in given.items() if value is not None]


def _unpriced(settings: PlanSettings) -> list[str]:
    return [f"{label}unknown while the time is" for label in _priced(settings)]


def _unmeasured(costs: Costs, calibrated: bool) -> str:
    """Which speeds are missing, and what would tell them."""
    shapes = f"{costs.unmeasured} shape{'s' * (costs.unmeasured > 1)}"
    why = "; ".join(sorted(set(costs.problems.values())))
    if calibrated and why:
        return f"{shapes} cannot be measured here: {why}"
    seconds = duration(2 * costs.unmeasured)
    return f"{shapes} not measured on this machine; `plan STUDY --calibrate` does, in some {seconds}"


def budget_lines(costs: Costs, settings: PlanSettings) -> list[str]:
    """Whether what is left fits the budget, in a sentence each for time and FLOPs; where no speed tells the time, the
    speed that the budget asks for."""
    flops, lines = sum(run.flops for run in costs.left), []
    if settings.flops is not None:
        lines.append(_against(amount(flops, "FLOP"), amount(settings.flops, "FLOP"), flops / settings.flops))
    if settings.budget is not None:
        if costs.seconds is not None:
            lines.append(_against(duration(costs.seconds), duration(settings.budget), costs.seconds / settings.budget))
        else:
            lines.append(_needed_speed(costs, flops, settings.budget))
    return [f"  budget       {line}" for line in lines]


def _needed_speed(costs: Costs, flops: float, budget: float) -> str:
    known = [spent for run in costs.left if (spent := costs.seconds_of(run)) is not None]
    told = f"{runs_words(len(known))} of known speed alone take {duration(sum(known))} of training; " if known else ""
    return (
        f"{duration(budget)}: unknown whether it fits: {told}{amount(flops, 'FLOP')} in that time ask for "
        f"{amount(flops / budget, 'FLOP/s')} over all slots; --calibrate or finished runs tell the speeds"
    )


def _against(wanted: str, given: str, share: float) -> str:
    if share <= 1:
        return f"fits: {wanted} of {given} ({share:.0%})"
    return (
        f"does not fit: {wanted} of {given} ({share:.3g} times too much); `plan STUDY --propose` writes one that does"
    )


def trunk_lines(trunks: Sequence[Trunk], runs: Sequence[LockedRun]) -> list[str]:
    """Which runs share steps, and what training those once saves."""
    if not trunks:
        return []
    shared = sum(len(trunk.runs) for trunk in trunks)
    saved, total = sum(trunk.saved_flops for trunk in trunks), sum(run.flops for run in runs)
    return [
        f"  trunks       {shared} runs share {len(trunks)} WSD trunk{'s' * (len(trunks) > 1)}, trained once each: "
        f"that saves {amount(saved, 'FLOP')} of {amount(total, 'FLOP')} ({saved / total:.0%})"
    ]


def forecast_lines(told: Forecast | None) -> list[str]:
    """The fit to come: every interval, what it was worked out from, and how well it is conditioned."""
    if told is None:
        return []
    if told.problem:
        return [f"  fit to come  not foreseen: {told.problem}"]
    lines = [f"  fit to come  {told.law} on {runs_words(told.points)}, expected 95 % intervals:"]
    lines += [
        f"{INDENT}{interval_text(name, *pair, name in told.unidentified)}" for name, pair in told.intervals.items()
    ]
    if told.prediction is not None:
        ahead = f"loss at {AHEAD:g} times the largest run's compute"
        lines.append(f"{INDENT}{ahead}: " + (f"+- {told.prediction:.2%}" if told.prediction < 1 else "unknown"))
    lines.append(f"{INDENT}law: {told.prior}; noise {told.noise:.2%} of the loss: {told.noise_source}")
    lines.append(f"{INDENT}condition number {told.condition:.1e}: {_health(told)}")
    return lines


def _health(told: Forecast) -> str:
    """One verdict on the design, which agrees with the intervals: what is not identified at this noise is not well."""
    if told.condition >= COLLINEAR:
        return "ill conditioned: the runs do not move the law's inputs apart"
    if told.unidentified:
        names = " and ".join(told.unidentified)
        return f"too few runs, or too alike, to tell {names} at this noise: vary the inputs more widely, or add runs"
    return "well conditioned" if told.condition < COLLINEAR / 1e3 else "poorly conditioned"


def interval_text(name: str, value: float, half: float, unidentified: bool) -> str:
    """`E      1.95 +- 0.03`, or in words where the runs will not tell."""
    what = {"a": "a (N_opt ~ C^a)"}.get(name, name)
    if unidentified:
        return f"{what:<16} {value:.4g}, not identified by these runs (+- {half:.2g})"
    return f"{what:<16} {value:.4g} +- {half:.2g}  ({value - half:.4g} to {value + half:.4g})"
