"""Designs that tell a Chinchilla law apart at a given total of FLOPs: IsoFLOP, a grid of ratios, a grid of N and D.

Each is centred on the compute-optimal size that the expected law names, and refused where that size would lie on, or
beyond, the edge of what can be trained: an optimum that is not enclosed from both sides cannot be measured (Porian et
al. 2024, arXiv 2406.19146, reject such minima).
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.lock import LockedRun
from experiments.planner.amounts import amount, short
from experiments.planner.ladder import Rung

Law = Mapping[str, float]  # E, A, B, alpha, beta of L = E + A / N^alpha + B / D^beta
FEWEST_STEPS = 128  # shorter runs lie off the law and bias E
WARM_UPS = 4  # a run is at least so many warm-ups long
FEWEST_SIZES = 5  # per IsoFLOP budget: a parabola and something to judge it by
SIZES = (-3, -2, -1, 0, 1, 2, 3)
MIDDLES = 96  # middle sizes tried, evenly in the logarithm
# Variants of each design, the dearest first: the expected law decides among those that the budget can pay for, and
# where it can pay for none the last one's refusal says what is missing.
ISOFLOPS = tuple(itertools.product((5, 4, 3), (5.0, 3.0), (2.2, 1.6)))  # budgets, step between them, between sizes
RATIO_GRIDS = tuple(itertools.product((5, 4), (3.0, 2.0), (4.0, 2.5, 2.0)))  # sizes, step, step between four ratios
SURFACES = tuple(itertools.product((5,), (4.0, 3.0, 2.0), (4.0, 3.0, 2.0)))  # sizes and lengths, steps of both


class Refused(Exception):
    """The design cannot enclose the optimum; the message says why and what would help."""


@dataclass(frozen=True)
class Cell:
    """One run of a design: its shape, the horizon as a study writes it, and what comes of it."""

    rung: Rung
    horizon: str
    value: float
    run: LockedRun


@dataclass(frozen=True)
class Design:
    """The runs of a design, and what it is in a sentence."""

    kind: str
    cells: tuple[Cell, ...]
    summary: str

    @property
    def flops(self) -> float:
        return sum(cell.run.flops for cell in self.cells)

    @property
    def runs(self) -> list[LockedRun]:
        return [cell.run for cell in self.cells]


def loss(law: Law, n: float, d: float) -> float:
    """The expected loss, nats per token."""
    return law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]


def optimal_size(law: Law, rungs: Sequence[Rung], flops: float) -> float:
    """The compute-optimal N at a compute, at the exact FLOPs per token of the shapes (between them, by straight lines
    in the logarithms); the smallest or largest shape's where the optimum lies beyond."""
    points = [(math.log(rung.n), loss(law, rung.n, flops / rung.run.flops_per_token)) for rung in rungs]
    best = min(range(len(points)), key=lambda i: points[i][1])
    if best in (0, len(points) - 1):
        return math.exp(points[best][0])
    (x0, y0), (x1, y1), (x2, y2) = points[best - 1 : best + 2]
    slope01, slope12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (slope12 - slope01) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - slope01 / (2 * bend)) if bend > 0 else math.exp(x1)


def isoflop(total: float, law: Law, rungs: Sequence[Rung]) -> Design:
    """Three to five budgets, each with five to seven sizes around its optimum (approach 2 of Hoffmann et al. 2022)."""
    return _best([functools.partial(_isoflop, total, law, rungs, *variant) for variant in ISOFLOPS], law)


def _best(variants: Sequence[Callable[[], Design]], law: Law) -> Design:
    """The variant whose fit is expected to tell E and the compute-optimal exponent best; Refused where none is left."""
    from experiments.planner.forecast import tells

    made: list[Design] = []
    problem = Refused("")
    for variant in variants:
        try:
            made.append(variant())
        except Refused as refusal:
            problem = refusal
    if not made:
        raise problem
    return min(made, key=lambda design: tells(law, [(cell.rung.n, cell.run.tokens) for cell in design.cells]))


def _isoflop(total: float, law: Law, rungs: Sequence[Rung], count: int, budget_step: float, size_step: float) -> Design:
    shares = [budget_step**-k for k in range(count - 1, -1, -1)]
    top = total / sum(shares)  # as if every budget were one run, which no design exceeds
    groups: list[list[Cell]] = []
    for _ in range(8):
        # Budgets hold five to seven sizes in whole steps, so the price of a design is known when it is made.
        groups = [_around(law, rungs, top * share, size_step) for share in shares]
        price = sum(cell.run.flops for group in groups for cell in group)
        if 0.97 * total <= price <= total:
            break
        top *= 0.99 * total / price
    cells = tuple(cell for group in groups for cell in group)
    if sum(cell.run.flops for cell in cells) > total:
        raise Refused(f"no {count} budgets with whole steps come to {amount(total, 'FLOP')}")
    sizes = " or ".join(map(str, sorted({len(group) for group in groups})))
    span = f"{amount(top * shares[0], 'FLOP')} to {amount(top, 'FLOP')}"
    return Design("isoflop", cells, f"{count} budgets of {span}, each with {sizes} sizes around its optimum")


def _around(law: Law, rungs: Sequence[Rung], flops: float, size_step: float) -> list[Cell]:
    """The sizes of one budget. Raises Refused where the optimum has fewer than two on either side."""
    flops = float(f"{flops:.4g}")
    best = optimal_size(law, rungs, flops)
    cells = {}
    for step in SIZES:
        rung = _nearest(rungs, best * size_step**step)
        run = rung.trained(flops / rung.run.flops_per_token)
        if rung.n and run.steps >= _fewest(run) and abs(math.log(rung.n / best)) < math.log(size_step) * 3.6:
            cells[rung.n] = Cell(rung, "flops", flops, run)
    smaller, larger = (sum(n < best for n in cells), sum(n > best for n in cells))
    if smaller >= 2 and larger >= 2 and len(cells) >= FEWEST_SIZES:
        return [cells[n] for n in sorted(cells)]
    side = "smaller" if smaller <= larger else "larger"
    why = "there is none" if side == "smaller" else _too_short(rungs[0].run, "larger ones")
    raise Refused(
        f"at {amount(flops, 'FLOP')} the optimum, about {short(best)} parameters, would sit on the edge: too "
        f"few {side} shapes can be trained ({why})"
    )


def tokens_per_param(total: float, law: Law, rungs: Sequence[Rung]) -> Design:
    """Four or five sizes, each at four ratios of tokens to parameters: the ratio varies widely at every size, which is
    what keeps the fit well conditioned."""
    return _best([functools.partial(_ratios, total, law, rungs, *variant) for variant in RATIO_GRIDS], law)


def _ratios(total: float, law: Law, rungs: Sequence[Rung], count: int, size_step: float, ratio_step: float) -> Design:
    def at(middle: float) -> list[Cell]:
        sizes = _distinct(rungs, [middle * size_step ** (k - (count - 1) / 2) for k in range(count)])
        best = _flops_at_optimum(law, rungs, middle) / _per_token(rungs, middle) / middle
        ratios = [float(f"{best * ratio_step ** (k - 1.5):.2g}") for k in range(4)]
        return [Cell(r, "tokens_per_param", x, r.trained(x * r.n)) for r in sizes for x in ratios]

    cells = _largest_within(total, rungs, at)
    ratios, sizes = sorted({cell.value for cell in cells}), sorted({cell.rung.n for cell in cells})
    told = f"{len(sizes)} sizes of {short(sizes[0])} to {short(sizes[-1])} parameters, each at "
    told += f"{', '.join(f'{ratio:g}' for ratio in ratios)} tokens per parameter"
    _refuse_edges(law, rungs, cells, sizes)
    return Design("tokens_per_param", tuple(cells), told)


def chinchilla(total: float, law: Law, rungs: Sequence[Rung]) -> Design:
    """Five sizes times five lengths around the optimum: a surface for approach 3.

    Every size has the same lengths, so under a WSD schedule the runs of a size share a trunk.
    """
    return _best([functools.partial(_surface, total, law, rungs, *variant) for variant in SURFACES], law)


def _surface(total: float, law: Law, rungs: Sequence[Rung], count: int, size_step: float, length_step: float) -> Design:
    around = range(-(count // 2), count // 2 + 1)

    def at(middle: float) -> list[Cell]:
        sizes = _distinct(rungs, [middle * size_step**k for k in around])
        tokens = _flops_at_optimum(law, rungs, middle) / _per_token(rungs, middle)
        lengths = list(dict.fromkeys(sizes[0].trained(tokens * length_step**k).tokens for k in around))
        return [Cell(rung, "tokens", length, rung.trained(length)) for rung in sizes for length in lengths]

    cells = _largest_within(total, rungs, at)
    sizes, lengths = sorted({cell.rung.n for cell in cells}), sorted({cell.value for cell in cells})
    told = f"{len(sizes)} sizes of {short(sizes[0])} to {short(sizes[-1])} parameters times {len(lengths)} lengths of "
    _refuse_edges(law, rungs, cells, sizes)
    return Design("chinchilla", tuple(cells), f"{told}{short(lengths[0])} to {short(lengths[-1])} tokens")


def _largest_within(total: float, rungs: Sequence[Rung], at: Callable[[float], list[Cell]]) -> list[Cell]:
    """The dearest design within `total` FLOPs whose every run is long enough, over the middle sizes there are.

    Raises Refused with the price of the cheapest design where even that one is too dear.
    """
    low, high = math.log(max(1, rungs[0].n)), math.log(rungs[-1].n)
    best: list[Cell] = []
    best_price, cheapest = 0.0, math.inf
    for step in range(MIDDLES):
        try:
            cells = at(math.exp(low + (high - low) * step / (MIDDLES - 1)))
        except Refused:  # the ladder ends too near
            continue
        if any(cell.run.steps < _fewest(cell.run) for cell in cells):
            continue
        price = sum(cell.run.flops for cell in cells)
        cheapest = min(cheapest, price)
        if best_price < price <= total:
            best, best_price = cells, price
        if price > total:
            break
    if best:
        return best
    if math.isinf(cheapest):
        raise Refused("none of these shapes has enough others around it")
    raise Refused(
        f"{amount(total, 'FLOP')} are too few: the cheapest such design whose runs have at least "
        f"{_fewest(rungs[0].run)} steps costs {amount(cheapest, 'FLOP')}; smaller batches would make it cheaper"
    )


def _refuse_edges(law: Law, rungs: Sequence[Rung], cells: Sequence[Cell], sizes: Sequence[int]) -> None:
    """Raises Refused unless the optimum at the middle compute lies inside the sizes, with one to spare on each side."""
    computes = sorted(cell.run.flops for cell in cells)
    best = optimal_size(law, rungs, computes[len(computes) // 2])
    if not sizes[1] <= best <= sizes[-2]:
        raise Refused(
            f"at {amount(computes[len(computes) // 2], 'FLOP')} the optimum, about {short(best)} parameters, would sit "
            f"on the edge of the sizes {short(sizes[0])} to {short(sizes[-1])}"
        )


def _flops_at_optimum(law: Law, rungs: Sequence[Rung], n: float) -> float:
    """The compute at which a size is the optimal one, by bisection."""
    low, high = math.log(rungs[0].run.flops_per_token), math.log(rungs[-1].run.flops_per_token) + math.log(1e15)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if optimal_size(law, rungs, math.exp(middle)) < n else (low, middle)
    return math.exp((low + high) / 2)


def _per_token(rungs: Sequence[Rung], n: float) -> float:
    """FLOPs per token of a size between the shapes."""
    for left, right in itertools.pairwise(rungs):
        if left.n <= n <= right.n and right.n > left.n:
            share = math.log(n / left.n) / math.log(right.n / left.n)
            return left.run.flops_per_token ** (1 - share) * right.run.flops_per_token**share
    return float(_nearest(rungs, n).run.flops_per_token)


def _nearest(rungs: Sequence[Rung], n: float) -> Rung:
    return min(rungs, key=lambda rung: abs(math.log(max(1, rung.n) / n)))


def _distinct(rungs: Sequence[Rung], sizes: Sequence[float]) -> list[Rung]:
    """The shape nearest to each size. Raises Refused where two sizes have one shape, or one has none near it."""
    found = [_nearest(rungs, size) for size in sizes]
    far = [size for rung, size in zip(found, sizes, strict=True) if abs(math.log(rung.n / size)) > math.log(1.5)]
    if far or len({rung.n for rung in found}) < len(found):
        known = f"{short(rungs[0].n)} to {short(rungs[-1].n)}"
        raise Refused(f"no shapes of about {' and '.join(map(short, far or sizes))} parameters (there are {known})")
    return found


def _fewest(run: LockedRun) -> int:
    """Steps below which a run says little of its law: it has hardly left its warm-up."""
    return max(FEWEST_STEPS, WARM_UPS * (run.config["schedule"].get("warmup_iters") or 0))


def _too_short(run: LockedRun, what: str) -> str:
    return f"{what} would have fewer than {_fewest(run)} steps; a larger budget or a smaller batch would help"


DESIGNS: dict[str, Callable[[float, Law, Sequence[Rung]], Design]] = {
    "isoflop": isoflop,
    "tokens_per_param": tokens_per_param,
    "chinchilla": chinchilla,
}
