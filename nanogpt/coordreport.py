"""What a coordinate check says: slopes against size, a verdict per parametrization, and the files it leaves."""

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nanogpt.config import Config, UserError, os_reason
from nanogpt.config.training import Muon
from nanogpt.coordcheck import KINDS, Reading, Sweep, base_width, run_sweep
from nanogpt.coordplot import draw_check
from nanogpt.record import replacing, write_atomic
from parametrization import MODES, update_scale

FLAT = 0.15  # the largest |slope| that passes: a factor of 1.5 over 16 times the size
# The default rates move the base model's weights by this share of init_std per step: in ten steps by half their own
# scale, so that what is learned shows beside what was drawn, and the smallest models do not saturate. Adam moves each
# weight by about the learning rate; Muon an n x n matrix by rate * factor / sqrt(n), root mean square.
RATE = 1 / 20
QUANTITIES = ("rms", "change")


@dataclass(frozen=True)
class Slope:
    """d log2(quantity) / d log2(size) at one step, the mean over seeds; `spread` is their standard deviation.

    NaN where a model diverged or where the quantity is zero.
    """

    axis: str
    mode: str
    kind: str
    quantity: str
    step: int
    slope: float
    spread: float


@dataclass(frozen=True)
class Verdict:
    """Whether a parametrization keeps activations and their changes in place at the last step.

    Earlier steps are shown and not judged. Two departures there are known and pass: muP's logits shrink as
    width^-1/2 at step 0, where they are sums over independent weights, and CompleteP's final residual shrinks with
    depth up to step 1, where its branches are still independent.
    """

    axis: str
    mode: str
    passed: bool
    worst: Slope


def slopes(readings: Sequence[Reading]) -> list[Slope]:
    """The slope of every mode, kind, quantity and step, by least squares over the sizes for each seed."""
    found: dict[tuple[str, str, str, int, str], dict[int, list[tuple[int, float]]]] = {}
    for reading in readings:
        for quantity in QUANTITIES if reading.step else QUANTITIES[:1]:
            key = (reading.axis, reading.mode, reading.kind, reading.step, quantity)
            point = (reading.size, getattr(reading, quantity))
            found.setdefault(key, {}).setdefault(reading.seed, []).append(point)
    return [
        Slope(axis, mode, kind, quantity, step, *_mean_and_spread([_slope(points) for points in seeds.values()]))
        for (axis, mode, kind, step, quantity), seeds in found.items()
    ]


def _slope(points: Iterable[tuple[int, float]]) -> float:
    import numpy as np

    sizes, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if not np.all(np.isfinite(values) & (values > 0)):
        return math.nan
    return float(np.polyfit(np.log2(sizes), np.log2(values), 1)[0])


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def verdicts(found: Sequence[Slope]) -> list[Verdict]:
    """One verdict per axis and mode: the steepest slope at the last step is at most FLAT, and every one is finite."""
    last = max(slope.step for slope in found)
    judged: dict[tuple[str, str], list[Slope]] = {}
    for slope in found:
        if slope.step == last:
            judged.setdefault((slope.axis, slope.mode), []).append(slope)
    # NaN is worse than any number and compares with none.
    worst = {
        key: max(group, key=lambda s: math.inf if math.isnan(s.slope) else abs(s.slope))
        for key, group in judged.items()
    }
    return [Verdict(axis, mode, abs(slope.slope) <= FLAT, slope) for (axis, mode), slope in worst.items()]


def format_table(found: Sequence[Slope]) -> str:
    """Per axis and mode one line for each kind, then the verdict."""
    last = max(slope.step for slope in found)
    table = {(s.axis, s.mode, s.kind, s.quantity, s.step): s for s in found}
    columns = [("rms", 0), ("rms", min(1, last)), ("rms", last), ("change", min(1, last)), ("change", last)]
    head = ["", *(f"{'size' if quantity == 'rms' else 'change'} at {step}" for quantity, step in columns)]
    lines: list[str] = []
    for verdict in verdicts(found):
        axis, mode = verdict.axis, verdict.mode
        rows = [[f"{axis}: {mode}", *head[1:]]] if not lines else [[f"{axis}: {mode}", *[""] * len(columns)]]
        for kind in KINDS:
            rows.append([f"  {kind}", *(_cell(table[axis, mode, kind, *column]) for column in columns)])
        lines += ["  ".join([row[0].ljust(22), *(cell.rjust(15) for cell in row[1:])]).rstrip() for row in rows]
        lines.append(f"  {_sentence(verdict)}\n")
    return "\n".join(lines).rstrip()


def _cell(slope: Slope) -> str:
    return "not finite" if math.isnan(slope.slope) else f"{round(slope.slope, 2) + 0.0:+.2f} +- {slope.spread:.2f}"


def _sentence(verdict: Verdict) -> str:
    worst = verdict.worst
    what = f"{worst.kind}, {'size' if worst.quantity == 'rms' else 'change'} at step {worst.step}"
    if math.isnan(worst.slope):
        return f"FAILS: not finite: {what}"
    outcome = f"passes: no |slope| above {FLAT}" if verdict.passed else f"FAILS: |slope| above {FLAT}"
    return f"{outcome}; the steepest is {worst.slope:+.2f} ({what})"


@dataclass(frozen=True)
class Checked:
    """The table for people, and whether every parametrization passed on every axis."""

    text: str
    passed: bool


def check(config: Config, sweeps: Sequence[Sweep], folder: Path) -> Checked:
    """Run the sweeps, showing progress on stderr, and write the files.

    `coord_check.csv` holds every reading, `slopes.csv` every slope, `coord_check.txt` the table, and
    `coord_check_<axis>.png` a figure per axis. Raises UserError before anything is trained or written.
    """
    started = time.perf_counter()
    readings = run_sweep(config, sweeps, _progress, before=lambda: _make(folder))
    found = slopes(readings)
    name = optimizer_name(config)
    notes = {sweep.axis: describe_sweep(config, sweep) for sweep in sweeps}
    heading = "\n".join(f"{axis}: {note}" for axis, note in notes.items())
    text = (
        f"slopes: d log2(rms) / d log2(size), mean +- standard deviation over seeds\n{heading}\n\n{format_table(found)}"
    )
    try:
        _write_csv(folder / "coord_check.csv", [field.name for field in fields(Reading)], map(asdict, readings))
        _write_csv(folder / "slopes.csv", [field.name for field in fields(Slope)], map(asdict, found))
        write_atomic(folder / "coord_check.txt", text + "\n")
        for one in sweeps:
            mine = [reading for reading in readings if reading.axis == one.axis]
            draw_check(mine, [slope for slope in found if slope.axis == one.axis], FLAT, name, notes[one.axis], folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None
    written = f"{text}\n\n{folder}: written in {time.perf_counter() - started:.0f} s"
    return Checked(written, all(verdict.passed for verdict in verdicts(found)))


def _make(folder: Path) -> None:
    """The folder, known to take files, before minutes of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "coord_check.txt", "")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {os_reason(error, folder)}") from None


def describe_sweep(config: Config, sweep: Sweep) -> str:
    """The optimizer, its rates and how much was trained, in a line."""
    steps = f"{sweep.steps} step{'s' if sweep.steps > 1 else ''}"
    trained = f"{steps} of {sweep.sequences} x {config.model.block_size} tokens"
    seeds = f"{sweep.seeds} seed{'s' if sweep.seeds > 1 else ''}"
    rates = f"{sweep.learning_rate:.3g}"
    if config.optimizer.kind == "muon":
        rates += f" (AdamW's half {sweep.adamw_learning_rate:.3g})"
    return f"{optimizer_name(config)}, {trained}, constant learning rate {rates}, {seeds}"


def optimizer_name(config: Config) -> str:
    """As people call it."""
    return f"Muon, scale {config.optimizer.scale}" if isinstance(config.optimizer, Muon) else "AdamW"


def _progress(text: str) -> None:
    """One line that is written over on a terminal; a line each in a log."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"coord-check: {text}".ljust(79 if end == "\r" else 0), end=end, file=sys.stderr, flush=True)


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def sweeps_from(arguments: argparse.Namespace, config: Config) -> list[Sweep]:
    """The sweeps that a command line asks for. Raises UserError for one that is not understood."""
    modes = tuple(arguments.modes.lower().split(",")) if arguments.modes else tuple(MODES)
    given = {"width": arguments.widths, "depth": arguments.depths}
    length = (arguments.steps, arguments.seeds, arguments.sequences)
    if arguments.adamw_learning_rate is not None and config.optimizer.kind != "muon":
        raise UserError(f"coord-check: adamw_learning_rate: optimizer.kind={config.optimizer.kind} has one rate alone")
    sweeps: list[Sweep] = []
    for axis in ("width", "depth"):
        if given[axis] is not None:
            sizes = _sizes(axis, given[axis])
            defaults = default_rates(config, base_width(config, axis, sizes))
            rates = [
                default if asked is None else asked
                for asked, default in zip(
                    (arguments.learning_rate, arguments.adamw_learning_rate), defaults, strict=True
                )
            ]
            sweeps.append(Sweep(axis, sizes, modes, *length, *rates))
    if not sweeps:
        raise UserError("coord-check: needs --widths or --depths, such as --widths 32,64,128,256")
    return sweeps


def default_rates(config: Config, base_n_embd: int) -> tuple[float, float]:
    """(learning rate, AdamW's half) that move the base model's weights by RATE of init_std per step.

    For Muon the move is that of a square matrix: an orthogonal n x n has entries of 1 / sqrt(n), root mean square.
    """
    move = config.parametrization.init_std * RATE
    if not isinstance(config.optimizer, Muon):
        return move, move
    return move * math.sqrt(base_n_embd) / update_scale(config.optimizer.scale, base_n_embd, base_n_embd), move


def _sizes(axis: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(
            f"coord-check: {axis}s: expected whole numbers with commas between them, got '{text}'"
        ) from None
