"""What a paper has to say of a fitted law so that a reader can repeat it: answered where the fit knows the answer.

The questions are those that most of 50 papers leave open (Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting", arXiv
2502.18969), and those behind published disagreements: how N and C are counted, and how a learning rate was decayed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit
    from experiments.analysis.rollout import Rollout

YOURS = (
    ("how N is counted", "with or without embeddings; active or all, of routed models"),
    ("how C is counted", "6 N D, or as spent with attention and the last layer"),
    ("what D counts", "tokens trained on; unique ones or repeated ones too"),
    ("learning-rate schedule", "decayed to the length of each run, or points read along one run"),
    ("other settings", "which were tuned, at which size, and how they follow N and D"),
    ("data and tokenizer", "training text, vocabulary, context length"),
    ("what the loss is", "nats per token on which held-out text; an average over how many tokens"),
    ("seeds", "how many per point; the spread between them"),
    ("choice of points", "whether rows were left out before or after the first fit was seen"),
)


@dataclass(frozen=True)
class Item:
    """One detail to report: its name, and the answer, or a hint at what to say and `known` False."""

    name: str
    answer: str
    known: bool = True


def checklist(fit: "Fit", rollout: "Rollout | None" = None) -> list[Item]:
    """Every detail, those that the fit knows first."""
    known = {
        "form": f"L = {fit.law.formula} ({fit.law.source}); {len(fit.params)} parameters",
        "points": f"{len(fit.points)} used, {len(fit.dropped)} dropped{_why(fit)}",
        "range of the points": _ranges(fit),
        "objective": f"{_loss(fit)} of residuals of {fit.target}, summed: {fit.objective:.10g}",
        "optimiser": f"damped Newton from {fit.starts} starts by variable projection, {fit.starts_agreeing} of which "
                     f"reach this optimum; {fit.reason}",
        "conditioning": f"condition number of J'J {fit.condition:.3g} in centred logarithmic coordinates",
        "not identified": _not_identified(fit),
        "form against the data": fit.misfit.words if fit.misfit is not None else "not tested: see the notes",
        "intervals": _intervals(fit),
        "held-out error": rollout.sentence() if rollout is not None else "not measured",
    }  # fmt: skip
    return [*(Item(name, answer) for name, answer in known.items()), *(Item(*pair, known=False) for pair in YOURS)]


def checklist_text(items: list[Item]) -> str:
    """The list for a person: what is known with a cross, what is left to say with an open box."""
    width = max(len(item.name) for item in items)
    return "\n".join(f"  [{'x' if item.known else ' '}] {item.name:<{width}}  {item.answer}" for item in items)


def _why(fit: "Fit") -> str:
    if not len(fit.dropped):
        return ""
    counts = fit.dropped["reason"].astype(str).value_counts()
    return f" ({'; '.join(f'{number}: {reason}' for reason, number in counts.items())})"


def _ranges(fit: "Fit") -> str:
    names = (*fit.law.columns, fit.y)
    return ", ".join(f"{name} {fit.points[name].min():.4g} to {fit.points[name].max():.4g}" for name in names)


def _loss(fit: "Fit") -> str:
    return {"huber": f"Huber, delta {fit.delta:g}", "lad": "absolute values", "lsq": "half the squares"}[fit.loss]


def _not_identified(fit: "Fit") -> str:
    """Their names. Without draws a profile would have to be made of each, which only who asks for intervals wants."""
    if not len(fit.draws) and fit.method == "bootstrap":
        return "not examined: no bootstrap was made"
    return ", ".join(name for name, good in fit.identified.items() if not good) or "none"


def _intervals(fit: "Fit") -> str:
    if fit.method == "profile":
        return "profile likelihood, 95 %"
    if not len(fit.draws):
        return "none: no bootstrap was made"
    by = f", clusters by {fit.cluster}" if fit.cluster else ""
    return (f"95 % percentiles of {len(fit.draws)} {fit.resample}-bootstrap resamples{by}, "
            f"{fit.draws_converged:.1%} converged, seed {fit.seed}")  # fmt: skip
