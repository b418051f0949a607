"""The progress of a study while it runs: seen in its files, shown live on a terminal and as plain lines elsewhere."""

import contextlib
import copy
import io
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from experiments.lock import LockedRun
from experiments.store import FINISHED, RunState, StudyFolder, published_record
from nanogpt.config import UserError
from nanogpt.record import Record, attempt_folder

HEARTBEAT_SECONDS = 60.0
TAIL_BYTES = 4096
BAR_WIDTH = 60
SHORTEST_LABEL = 9
NARROW = 60  # columns, below which a line tells only the loss
SHOWN_LOSSES = 3  # in a heartbeat line, which should stay one line


@dataclass(frozen=True)
class Running:
    """A run that trains now, and how far it is."""

    label: str
    step: int
    steps: int
    loss: float | None


@dataclass(frozen=True)
class Change:
    """A run whose state has changed since the last look."""

    run: LockedRun
    state: RunState
    record: Record | None


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment. `seconds_left` is the FLOPs left over the FLOP/s measured since this watch began."""

    states: dict[str, int]
    changes: list[Change]
    running: list[Running]
    flops_done: float
    flops: float
    seconds: float
    seconds_left: float | None
    to_propose: int = 0

    @property
    def total(self) -> int:
        return sum(self.states.values()) + self.to_propose

    @property
    def finished(self) -> int:
        return sum(self.states.get(status, 0) for status in FINISHED)


@dataclass
class Observer:
    """Looks at a study's files again and again, and tells what has changed."""

    study: StudyFolder
    states: dict[str, RunState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.states = self.study.states()
        self._began = time.monotonic()
        self._runs = {run.id: run for run in self.study.runs()}
        self._flops_at_start = self._flops_done(self._look_at_running())

    def twin(self) -> "Observer":
        """One that has seen the same so far, and from here on sees changes of its own."""
        other = copy.copy(self)
        other.states = dict(self.states)
        return other

    def look(self) -> Snapshot:
        changes = self._changes()
        running = self._look_at_running()
        done, seconds = self._flops_done(running), time.monotonic() - self._began
        total = sum(run.flops for run in self._runs.values())
        gained = done - self._flops_at_start
        left = (total - done - self._flops_lost()) / gained * seconds if gained > 0 else None
        return Snapshot(
            states=dict(Counter(state.status for state in self.states.values())),
            changes=changes,
            running=list(running.values()),
            flops_done=done,
            flops=total,
            seconds=seconds,
            # Trials that are not proposed yet have no size, so nobody knows how long they take.
            seconds_left=None if self.study.to_propose else left,
            to_propose=self.study.to_propose,
        )

    def _changes(self) -> list[Change]:
        # What is published stays so: only the rest is looked at again.
        settled = {id for id, state in self.states.items() if state.status in FINISHED}
        changes = []
        for id, now in self.study.states(settled).items():
            if now != self.states.get(id, RunState("missing")):
                changes.append(Change(self._run(id), now, self._record(id) if now.status in FINISHED else None))
            self.states[id] = now
        # What ended made room for what started, so it is told first.
        return sorted(changes, key=lambda change: change.state.status == "running")

    def _record(self, id: str) -> Record | None:
        with contextlib.suppress(UserError):  # a table will name the damage; a line of progress does without
            return published_record(self.study.folder(self._run(id)))
        return None

    def _run(self, id: str) -> LockedRun:
        """A run by its id; a sampler may have proposed it since the last look."""
        if id not in self._runs:
            self._runs = {run.id: run for run in self.study.runs()}
        return self._runs[id]

    def _look_at_running(self) -> dict[str, Running]:
        running = {}
        for id, state in self.states.items():
            if state.status == "running":
                run = self._run(id)
                line = last_line(attempt_folder(self.study.folder(run), state.generation) / "history.jsonl")
                loss = line.get("val_loss") or line.get("train_loss")
                running[id] = Running(run.label, int(line.get("step", 0)), run.steps, loss)
        return running

    def _flops_done(self, running: dict[str, Running]) -> float:
        finished = (self._run(id).flops for id, state in self.states.items() if state.status in FINISHED)
        return sum(finished) + sum(self._run(id).flops * now.step / max(now.steps, 1) for id, now in running.items())

    def _flops_lost(self) -> float:
        return sum(self._run(id).flops for id, state in self.states.items() if state.status == "failed")


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a history that is being written; empty when there is none."""
    import json

    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
        return json.loads(lines[-2])
    except (OSError, IndexError, ValueError):
        return {}


class Progress(Protocol):
    """Shows snapshots to a person."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the study as it is now."""

    def close(self) -> None:
        """Leave the screen as the next line of text needs it."""


class Plain:
    """One line per change of a run's state, and one a minute in between, so that a log never looks dead."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = time.monotonic()

    def show(self, snapshot: Snapshot) -> None:
        for change in snapshot.changes:
            self._say(f"{_counter(snapshot)} {change_text(change)}")
        if time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            losses = "; ".join(running_text(run) for run in snapshot.running[:SHOWN_LOSSES])
            self._say(" | ".join(filter(None, [summary_text(snapshot), losses])))

    def close(self) -> None:
        self._out.flush()

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {line}", file=self._out, flush=True)


class Live:
    """A bar and the running runs, redrawn in place; finished runs scroll by above, one line each."""

    def __init__(self) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(refresh_per_second=4)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        console = self._live.console
        told = [change for change in snapshot.changes if change.state.status != "running"]
        finished = snapshot.finished - sum(change.state.status in FINISHED for change in told)
        for change in told:
            finished += change.state.status in FINISHED
            line = f"[{finished}/{snapshot.total}] "
            text = line + change_text(change, console.width - len(line))
            console.print(text, highlight=False, markup=False, no_wrap=True, overflow="ellipsis")
        self._live.update(panel(snapshot, console.width, console.height))

    def close(self) -> None:
        self._live.stop()


def panel(snapshot: Snapshot, width: int, height: int) -> Any:
    """The lines redrawn in place, none of them wrapped: a summary, a bar, and as many running runs as leave room."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    room = max(1, height // 2 - 3)
    shown = snapshot.running if len(snapshot.running) <= room else snapshot.running[: room - 1]
    lines = [f"  {running_text(run, width - 2)}" for run in shown]
    if len(shown) < len(snapshot.running):
        lines.append(f"  ... and {len(snapshot.running) - len(shown)} more")
    table = Table.grid()
    table.add_row(Text(summary_text(snapshot), no_wrap=True, overflow="ellipsis"))
    table.add_row(ProgressBar(snapshot.flops or 1, snapshot.flops_done, width=min(width, BAR_WIDTH)))
    for line in lines:
        table.add_row(Text(line, no_wrap=True, overflow="ellipsis"))
    return table


def _counter(snapshot: Snapshot) -> str:
    return f"[{snapshot.finished}/{snapshot.total}]"


def change_text(change: Change, width: int | None = None) -> str:
    """`completed  n_layer=4  val_loss 2.345  in 12.3 s`, in `width` columns at the cost of the label."""
    facts = []
    if change.record is not None and change.record.val_loss is not None:
        facts.append(f"val_loss {change.record.val_loss:.4f}")
    if change.record is not None:
        facts.append(f"in {duration(change.record.wall_seconds)}")
    facts += filter(None, [change.state.detail if change.state.status not in ("running", "queued") else ""])
    begin = f"{change.state.status:<11} "
    if width is not None and width < NARROW:
        begin, facts = f"{change.state.status} ", facts[:1]
    end = "".join(f"  {fact}" for fact in facts)
    return f"{begin}{shortened(change.run.label, width and width - len(begin) - len(end))}{end}"


def summary_text(snapshot: Snapshot) -> str:
    """`10 of 96 finished, about 12.0 s left: 2 running, 84 to go`."""
    left = {status: count for status, count in sorted(snapshot.states.items()) if status not in FINISHED}
    counts = {"running": left.pop("running", 0), "to go": left.pop("missing", 0), **left}
    counts["to be proposed"] = snapshot.to_propose
    states = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    time_left = f", about {duration(snapshot.seconds_left)} left" if snapshot.seconds_left else ""
    return f"{snapshot.finished} of {snapshot.total} finished{time_left}{': ' if states else ''}{states}"


def running_text(run: Running, width: int | None = None) -> str:
    """`n_layer=4  120/300  loss 2.345`."""
    loss = f"  loss {run.loss:.3f}" if run.loss is not None else ""
    end = f"  {run.step}/{run.steps}{loss}"
    return f"{shortened(run.label, width and width - len(end))}{end}"


def shortened(label: str, width: int | None) -> str:
    """A label in at most `width` columns, without its middle: what tells it from others may be at either end."""
    if width is None or len(label) <= width:
        return label
    kept = max(width - 3, SHORTEST_LABEL)
    return label if len(label) <= kept + 3 else f"{label[: kept // 2]}...{label[len(label) - (kept - kept // 2) :]}"


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def for_stream(out: TextIO | None) -> Progress:
    """Live where the cursor can be moved, plain lines everywhere else; None is a closed output."""
    if out is None:
        return Plain(io.StringIO())
    moves = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return Live() if moves else Plain(out)
