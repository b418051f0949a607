"""Does one size's optimum serve the others? The verdict, the sentence and the table of a study's `optimum:` section."""

import math

import pandas as pd

from experiments.analysis.claims import Claim, Verdict
from experiments.analysis.optimum import Estimate, Optima, Panel, SizeOptimum
from experiments.analysis.parabola import Refusal
from experiments.analysis.spec import OptimumSpec


def transfer_claims(optima: Optima, spec: OptimumSpec) -> tuple[Claim, ...]:
    """One sentence per panel, judged by the intervals of every size's drift and regret."""
    return tuple(_claim(optima, panel, spec) for panel in optima.panels)


def regret_limit(size: SizeOptimum, spec: OptimumSpec) -> float:
    """`max_regret`, or twice the deviation between seeds where that is more: less cannot be told from noise."""
    return max(spec.max_regret, 0.0 if math.isnan(size.seed_sd) else 2 * size.seed_sd)


def judge(panel: Panel, spec: OptimumSpec) -> Verdict:
    """Fails when one size certainly breaks a limit, holds when every size certainly keeps both, else undecided."""
    verdicts = {verdict for size in panel.sizes if size.size != panel.base for verdict in judge_size(size, spec)}
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts == {"holds"} else "undecided"


def judge_size(size: SizeOptimum, spec: OptimumSpec) -> tuple[Verdict, Verdict]:
    """The verdicts on one size's drift and regret."""
    drift = _within(size.drift, -spec.max_drift, spec.max_drift)
    return drift, _within(size.regret, -math.inf, regret_limit(size, spec))


def _within(number: Estimate | Refusal, low: float, high: float) -> Verdict:
    """By its interval, never by its value alone."""
    if isinstance(number, Refusal) or not number.has_interval:
        return "undecided"
    if low <= number.lower and number.upper <= high:
        return "holds"
    return "fails" if number.lower > high or number.upper < low else "undecided"


def _claim(optima: Optima, panel: Panel, spec: OptimumSpec) -> Claim:
    per, verdict = _leaf(optima.per), judge(panel, spec)
    head = f"{panel.value}: " if optima.panel is not None else ""
    others = [size for size in panel.sizes if size.size != panel.base]
    if not others:
        return Claim(f"{head}only {per} {panel.base} was tried, so nothing moves.")
    parts = [_drift_words(optima, panel, others), _regret_words(optima, panel, others), _reasons(per, panel)]
    limit = (
        f"within {spec.max_drift:g} octave{'s' * (spec.max_drift != 1)} and {spec.max_regret:g} (or 2 sd over seeds)"
    )
    ends = {
        "holds": f"Every interval lies {limit}.",
        "fails": f"That is NOT {limit}: {_which('fails', others, per, spec)}.",
        "undecided": f"Whether that is {limit} is not decided: "
        + ("one seed gives no interval." if len(panel.seeds) < 2 else f"{_which('undecided', others, per, spec)}."),
    }
    text = " ".join(part for part in [*parts, ends[verdict]] if part)
    return Claim(f"{head}{text}", {"holds": True, "fails": False}.get(verdict), verdict == "undecided")


def _which(verdict: Verdict, sizes: list[SizeOptimum], per: str, spec: OptimumSpec) -> str:
    """What a verdict hangs on: `drift at n_embd 128, 256; regret at n_embd 256`."""
    judged = {size.size: judge_size(size, spec) for size in sizes}
    parts = []
    for index, name in enumerate(("drift", "regret")):
        found = ", ".join(str(size) for size, verdicts in judged.items() if verdicts[index] == verdict)
        parts += [f"{name} at {per} {found}"] if found else []
    return "; ".join(parts)


def _drift_words(optima: Optima, panel: Panel, others: list[SizeOptimum]) -> str:
    """The size whose optimum lies farthest from the base's, and the slope."""
    moved = [(size, size.drift) for size in others if isinstance(size.drift, Estimate)]
    x, per = _leaf(optima.x), _leaf(optima.per)
    if not moved:
        return f"how far the best {x} moves cannot be said."
    size, drift = max(moved, key=lambda pair: abs(pair[1].value))
    text = f"the best {x} moves most at {per} {size.size}, by {_signed(drift)} octaves from that of {panel.base}"
    if panel.slope is not None:
        text += f" ({_signed(panel.slope)} per doubling)"
    return f"{text}."


def _regret_words(optima: Optima, panel: Panel, others: list[SizeOptimum]) -> str:
    known = [(size, size.regret) for size in others if isinstance(size.regret, Estimate)]
    if not known:
        return ""
    size, regret = max(known, key=lambda pair: pair[1].value)
    where = f"at {_leaf(optima.per)} {size.size}"
    if regret.value <= 0:
        return f"Using the best of {panel.base} costs nothing that shows ({number_text(regret)} at most, {where})."
    return f"Using the best of {panel.base} costs at most {number_text(regret)} in {_leaf(optima.y)}, {where}."


def _reasons(per: str, panel: Panel) -> str:
    """What is not known, and why."""
    reasons = []
    for size in panel.sizes:
        refused = next((n for n in (size.optimum, size.drift, size.regret) if isinstance(n, Refusal)), None)
        if refused is not None:
            reasons.append(f"At {per} {size.size}: {refused.reason}.")
    return " ".join(reasons)


def transfer_table(optima: Optima) -> pd.DataFrame:
    """Panel, size, optimum with interval, loss there, drift, regret, seeds and diverged runs, as text for people."""
    rows = []
    for panel in optima.panels:
        for size in panel.sizes:
            rows.append({
                **({_leaf(optima.panel): str(panel.value)} if optima.panel is not None else {}),
                _leaf(optima.per): str(size.size),
                f"best {_leaf(optima.x)}": _power(size.optimum),
                "loss there": "" if math.isnan(size.loss) else f"{size.loss:.4f}",
                "drift (octaves)": "base" if size.size == panel.base else number_text(size.drift, signed=True),
                "regret": "base" if size.size == panel.base else number_text(size.regret),
                "seeds": str(len(panel.seeds)),
                "diverged": str(int(size.points["diverged"].sum())),
            })  # fmt: skip
    return pd.DataFrame(rows)


def table_notes(optima: Optima) -> tuple[str, ...]:
    """How the numbers of the table came about, and which are missing and why."""
    how = (
        f"best {_leaf(optima.x)}: minimum of a parabola in log2 through the mean losses within {optima.window} grid "
        "steps of the lowest; loss there and regret: read from Akima's interpolant through the means"
    )
    several = any(len(panel.seeds) > 1 for panel in optima.panels) and optima.bootstrap > 0
    intervals = (
        f"95 % intervals in brackets: {optima.bootstrap} bootstrap resamples of whole seeds, widened by Student's t"
    )
    notes = [how, intervals if several else "no intervals: they need two seeds and a bootstrap"]
    for panel in optima.panels:
        head = f"{panel.value}: " if optima.panel is not None else ""
        reasons = _reasons(_leaf(optima.per), panel)
        notes += [f"{head}{reasons}"] if reasons else []
    return tuple(notes)


def transfer_text(optima: Optima) -> str:
    """The table and its notes as a terminal shows them."""
    table = transfer_table(optima)
    widths = {name: max(len(name), *(len(cell) for cell in table[name])) for name in table.columns}
    lines = ["  ".join(name.ljust(widths[name]) for name in table.columns).rstrip()]
    for row in table.to_dict(orient="records"):
        lines.append("  ".join(str(row[name]).ljust(widths[str(name)]) for name in table.columns).rstrip())
    return "\n".join([*lines, *(f"  {note}" for note in table_notes(optima))])


def number_text(number: Estimate | Refusal, signed: bool = False) -> str:
    """`0.012 [0.004, 0.020]`, `+0.31` with a sign, `not known` where it was refused."""
    if isinstance(number, Refusal):
        return "not known"
    return _signed(number) if signed else _bracketed(number, "{:.4f}")


def _signed(number: Estimate) -> str:
    return _bracketed(number, "{:+.2f}")


def _bracketed(number: Estimate, form: str) -> str:
    text = form.format(number.value)
    return f"{text} [{form.format(number.lower)}, {form.format(number.upper)}]" if number.has_interval else text


def _power(log2_x: Estimate | Refusal) -> str:
    if isinstance(log2_x, Refusal):
        return "not known"
    text = f"{2**log2_x.value:.3g}"
    return f"{text} [{2**log2_x.lower:.3g}, {2**log2_x.upper:.3g}]" if log2_x.has_interval else text


def _leaf(name: str | None) -> str:
    return (name or "").rpartition(".")[2]
