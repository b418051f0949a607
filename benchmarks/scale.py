"""How claims, beats and status grow on a shared file system: a seeded discrete-event simulation.

    python -m benchmarks.scale [--figure docs/figures/scale.png]

The numbers of operations come from the real code (benchmarks.file_operations), and so does the order in which workers
look at runs (experiments/spread.py). The file server answers an operation after `LATENCY` and completes `CAPACITY` of
them per second for everybody; an act of n operations takes n latencies, and n / CAPACITY of the server. The simulated
trainings are log-normal around ten minutes. Nothing but the server is shared, and nothing fails.
"""

import argparse
import heapq
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.file_operations import operations
from experiments.lease import BEAT_SECONDS
from experiments.queue import LOOKS_IN_VAIN
from experiments.spread import Looks
from experiments.worker import LOOK_AGAIN_SECONDS, REQUESTS_SECONDS

LATENCY, CAPACITY = 1e-3, 10_000.0
MEDIAN_SECONDS, SIGMA = 600.0, 0.5
CASES = ((1_000, 10), (10_000, 100), (30_000, 300), (100_000, 1_000))
LISTED_PER_OPERATION = 100  # names that one READDIR answers
FREE, RUNNING, FINISHED = 0, 1, 2


@dataclass(frozen=True)
class Policy:
    """How a worker looks for a run."""

    name: str
    spread: bool
    lists_study: bool
    asks_list: bool  # of published runs, after looking in vain for a while
    requests_every: float


NOW = Policy("as it is", True, False, True, REQUESTS_SECONDS)
SPREAD = Policy("without the list", True, False, False, REQUESTS_SECONDS)
PLAIN = Policy("all in one order", False, True, False, 0.5)


@dataclass(frozen=True)
class SimRun:
    """What `Looks` needs of a run."""

    id: int


class Left:
    """The runs that a worker has not seen finished, as a sequence."""

    def __init__(self, every: list[SimRun], left: np.ndarray) -> None:
        self._every, self._left = every, np.flatnonzero(left)

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, index: int) -> SimRun:
        return self._every[self._left[index]]


@dataclass
class Server:
    """A file server with one queue."""

    background: float
    free_at: float = 0.0
    operations: float = 0.0

    def act(self, now: float, count: float) -> float:
        """When an act of `count` operations that begins now is done."""
        self.operations += count
        rate = max(CAPACITY - self.background, 1.0)
        self.free_at = max(self.free_at, now) + count / rate
        return max(now + count * LATENCY, self.free_at + LATENCY)


@dataclass
class Outcome:
    """What came of one simulated study. Times in seconds; `looking` is the mean share of a worker's time."""

    makespan: float
    ideal: float
    all_started: float
    last_look: float
    looking: float
    looks_per_run: float
    operations_per_second: float
    background: float


@dataclass
class Simulation:
    """Workers of one slot each on one study."""

    runs: int
    workers: int
    policy: Policy
    costs: dict[str, int]
    seed: int = 0
    looks: float = 0.0
    seconds_looking: float = 0.0
    state: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        self.seconds = sorted(
            (draw.lognormvariate(math.log(MEDIAN_SECONDS), SIGMA) for _ in range(self.runs)), reverse=True
        )
        self.state = np.zeros(self.runs, dtype=np.int8)
        self.every = [SimRun(i) for i in range(self.runs)]
        self.left = np.ones((self.workers, self.runs), dtype=bool)
        self.now = 0.0
        self.orders = [Looks(lambda: self.now, random.Random(f"{self.seed}/{w}")) for w in range(self.workers)]
        beats = self.costs["beat"] / BEAT_SECONDS + self.costs["look for requests"] / self.policy.requests_every
        self.server = Server(self.workers * beats)

    def play(self) -> Outcome:
        """Until every worker has seen that nothing is left."""
        events = [(0.0, worker, -1) for worker in range(self.workers)]
        started = [math.nan] * self.workers
        last_end = done_at = 0.0
        while events:
            self.now, worker, ended = heapq.heappop(events)
            began = self.now
            if ended >= 0:
                self.state[ended] = FINISHED
                self.left[worker, ended] = False
                last_end = began
                self.now = self.server.act(began, self.costs["record its end"])
            run, at = self._find(worker)
            self.seconds_looking += at - began
            if run is None:
                done_at = max(done_at, at)
                if self.left[worker].any():
                    heapq.heappush(events, (at + LOOK_AGAIN_SECONDS, worker, -1))
                continue
            if math.isnan(started[worker]):
                started[worker] = at
            heapq.heappush(events, (at + self.seconds[run], worker, run))
        busy = sum(self.seconds)
        return Outcome(
            makespan=last_end,
            ideal=max(busy / self.workers, self.seconds[0]),
            all_started=max(at for at in started if not math.isnan(at)),
            last_look=done_at - last_end,
            looking=self.seconds_looking / (self.workers * done_at),
            looks_per_run=self.looks / self.runs,
            operations_per_second=self.server.operations / done_at + self.server.background,
            background=self.server.background,
        )

    def _find(self, worker: int) -> tuple[int | None, float]:
        """A run that this worker claims, and when it has it; None when all that it looked at are held or finished."""
        listing = self.runs / LISTED_PER_OPERATION if self.policy.lists_study else 0.0
        at = self.server.act(self.now, self.costs["begin to look"] + listing)
        if not (self.state == FREE).any():
            return None, self._look_at_all(worker, at)
        if not self.policy.spread:
            return self._first_free(worker, at)
        looks, in_vain = self.orders[worker], 0
        for run in looks.in_turn(Left(self.every, self.left[worker])):
            if not self.left[worker, run.id]:
                continue
            if self.policy.asks_list and in_vain == LOOKS_IN_VAIN:
                at, in_vain = self._ask_list(worker, at), 0
            in_vain += 1
            at = self._look(worker, run.id, at)
            if self.state[run.id] == FREE:
                self.state[run.id] = RUNNING
                return run.id, self.server.act(at, self.costs["claim it"])
            looks.held_by_others(run)
        return None, at

    def _look(self, worker: int, run: int, at: float) -> float:
        self.looks += 1
        act = {FREE: "look at a free run", RUNNING: "look at a run held elsewhere", FINISHED: "look at a finished run"}
        if self.state[run] == FINISHED:
            self.left[worker, run] = False
        return self.server.act(at, self.costs[act[int(self.state[run])]])

    def _first_free(self, worker: int, at: float) -> tuple[int | None, float]:
        run = int(np.argmax(self.state == FREE))
        at = self._count_looks(worker, self.left[worker][:run], self.state[:run], at)
        self.state[run] = RUNNING
        return run, self.server.act(at, self.costs["look at a free run"] + self.costs["claim it"])

    def _ask_list(self, worker: int, at: float) -> float:
        self.left[worker] &= self.state != FINISHED
        return self.server.act(at, self.costs["ask the list"])

    def _look_at_all(self, worker: int, at: float) -> float:
        """Nothing is free: every run that is left is looked at, and what is finished is done with."""
        if self.policy.asks_list and self.left[worker].sum() > LOOKS_IN_VAIN:
            at = self.server.act(at, LOOKS_IN_VAIN * self.costs["look at a finished run"])
            at = self._ask_list(worker, at)
        return self._count_looks(worker, self.left[worker], self.state, at)

    def _count_looks(self, worker: int, left: np.ndarray, state: np.ndarray, at: float) -> float:
        finished, held = int((left & (state == FINISHED)).sum()), int((left & (state == RUNNING)).sum())
        left &= state != FINISHED
        self.looks += finished + held
        count = finished * self.costs["look at a finished run"] + held * self.costs["look at a run held elsewhere"]
        return self.server.act(at, count)


def outcomes(
    costs: dict[str, int], cases: tuple[tuple[int, int], ...] = CASES
) -> Iterator[tuple[int, int, str, Outcome]]:
    for runs, workers in cases:
        for policy in (PLAIN, SPREAD, NOW):
            yield runs, workers, policy.name, Simulation(runs, workers, policy, costs).play()


def draw(rows: list[tuple[int, int, str, Outcome]], path: Path) -> None:
    """Operations per second against workers, beside what the server can do, and how much longer a study takes."""
    import matplotlib.pyplot as plt

    figure, (load, stretch) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, style in ((PLAIN.name, "o:"), (SPREAD.name, "o--"), (NOW.name, "o-")):
        mine = [(workers, outcome) for _, workers, policy, outcome in rows if policy == name]
        load.plot([w for w, _ in mine], [o.operations_per_second for _, o in mine], style, label=name)
        stretch.plot([w for w, _ in mine], [(o.makespan + o.last_look) / o.ideal for _, o in mine], style, label=name)
    load.axhline(CAPACITY, color="0.4", linewidth=0.8)
    load.set(xscale="log", yscale="log", xlabel="workers (100 runs each)", ylabel="operations per second")
    load.annotate("what the server can do", (12, CAPACITY * 1.1), color="0.3", fontsize=8)
    stretch.axhline(1.0, color="0.4", linewidth=0.8)
    stretch.set(xscale="log", xlabel="workers (100 runs each)", ylabel="time until all have ended / ideal")
    for axes in (load, stretch):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--largest", type=int, default=CASES[-1][0], help="leave out studies of more runs")
    given = parser.parse_args()
    costs = operations()
    print(", ".join(f"{act}: {count}" for act, count in costs.items()))
    print(f"{'runs':>7} {'workers':>7}  {'order':16} {'all at work':>11} {'looks/run':>9} {'looking':>8} "
          f"{'beats etc.':>10} {'operations':>12} {'runs done':>9} {'workers end':>11}")  # fmt: skip
    rows = []
    for runs, workers, policy, o in outcomes(costs, tuple(case for case in CASES if case[0] <= given.largest)):
        rows.append((runs, workers, policy, o))
        print(f"{runs:7,} {workers:7,}  {policy:16} {o.all_started:9.1f} s {o.looks_per_run:9.1f} {o.looking:8.2%} "
              f"{o.background:8.0f}/s {o.operations_per_second:10.0f}/s {o.makespan / o.ideal:8.2f}x "
              f"{o.last_look:9.0f} s", flush=True)  # fmt: skip
    if given.figure:
        draw(rows, given.figure)


if __name__ == "__main__":
    sys.exit(main())
