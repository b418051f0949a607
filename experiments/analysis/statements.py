"""The `claims:` of a study: short sentences that can be checked, parsed by fixed patterns. Imports nothing heavy.

Each form is one class with its pattern and an example; the verdict on it is a function in judge.py. A sentence may end
in `where <filter>`, which chooses the runs it speaks of. Nothing of a sentence is ever evaluated as code.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from experiments.analysis.filters import Filter
from nanogpt.config import UserError, did_you_mean

# What people call the columns.
COMMON_NAMES = {
    "lr": "learning_rate", "depth": "n_layer", "width": "n_embd", "compute": "flops", "parameters": "n_params",
    "size": "n_params_non_embedding", "data": "tokens",
}  # fmt: skip
WORDS = {"half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "ten": 10.0}
NUMBER = rf"(?:[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?|{'|'.join(WORDS)})"
_LOW, _HIGH = ("above", "over", "more than", "at least"), ("below", "under", "less than", "at most", "within")
_ENTROPY = "the entropy"
BOUND = (
    rf"(?P<bound>(?:{'|'.join((*_LOW, *_HIGH))}) {NUMBER}(?: %)?"
    rf"|between {NUMBER}(?: %)? and {NUMBER}(?: %)?|within {NUMBER} % of (?:{NUMBER}|{_ENTROPY}))"
)
SYMBOL = r"\w+(?:\[[^\]\s]+\])?"  # alpha, or rho_N[muon]: what a shared law has per variant
EQUAL = r"(?: at equal (?P<x>\S+))?"
FIXED_WORDS = (
    "largest mean held-out holdout rollout error optimal best drifts octave octaves in exponent of beats matches by at "
    "equal covers the entropy every lowest noise scale tokens critical batch size loss between and "
    + " ".join((*_LOW, *_HIGH))
).split()
LEAST_BATCHES = 3  # batch sizes behind a critical one
Word = Literal["held", "failed", "undecided"]


@dataclass(frozen=True)
class Bound:
    """The range a number must lie in. `of_entropy`: both ends are shares of the entropy of the data."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    of_entropy: bool = False

    def judge(self, lower: float, upper: float, unit: float = 1.0) -> Word:
        """Held when the whole interval lies inside, failed when all of it lies outside; NaN decides nothing."""
        low, high = self.low * unit, self.high * unit
        if low <= lower and upper <= high:
            return "held"
        return "failed" if lower > high or upper < low else "undecided"


@dataclass(frozen=True)
class Statement:
    """One checkable sentence: its text, and the filter on the runs it speaks of."""

    text: str
    where: str | None
    pattern: ClassVar[str]
    example: ClassVar[str]
    needs: ClassVar[str | None] = None  # the section of a study without which it can not be judged
    chosen_by: ClassVar[str | None] = None  # what chooses its runs, where a `where` of its own can not

    def columns(self) -> list[str]:
        """The columns that it names."""
        return []

    def section(self) -> str | None:
        """The section of a study without which it cannot be judged."""
        return self.needs


@dataclass(frozen=True)
class HeldOutError(Statement):
    """The absolute relative error of a prediction of runs that were not fitted. `by`: `holdout` is that of
    `fit.holdout`, `rollout` that of the expanding cuts which every fit has, `held-out` the first where there is one."""

    by: Literal["held-out", "holdout", "rollout"]
    which: Literal["largest", "mean"]
    bound: Bound
    pattern = rf"(?:(?P<which>largest|mean) )?(?P<by>held-out|holdout|rollout) error {BOUND}"
    example = "held-out error below 2 %"
    needs = "fit"
    chosen_by = "the `fit:` section"

    def section(self) -> str | None:
        return "fit.holdout" if self.by == "holdout" else self.needs


@dataclass(frozen=True)
class OfOptima(Statement):
    """Of where one column is best at each value of another."""

    of: str
    per: str
    bound: Bound

    def columns(self) -> list[str]:
        return [self.of, self.per]


@dataclass(frozen=True)
class Drift(OfOptima):
    """How far the optimum of one column moves from the smallest value of another, in octaves."""

    pattern = rf"(?:optimal|best) (?P<of>\S+) drifts {BOUND} octaves? in (?P<per>\S+)"
    example = "optimal learning_rate drifts under 1 octave in n_layer"


@dataclass(frozen=True)
class OptimumExponent(OfOptima):
    """The exponent of a hyper-parameter's power law in a size."""

    pattern = rf"exponent of (?:optimal|best) (?P<of>\S+) in (?P<per>\S+) {BOUND}"
    example = "exponent of optimal learning_rate in n_params between -0.5 and -0.1"


@dataclass(frozen=True)
class Beats(Statement):
    """The compute multiplier of one variant over another lies above `by`."""

    factor: str | None
    candidate: str
    baseline: str
    by: float
    x: str
    pattern = rf"(?:(?P<factor>\S+) )?(?P<candidate>\S+) beats (?P<baseline>\S+)(?: by (?P<by>{NUMBER}) ?x)?{EQUAL}"
    example = "muon beats adamw at equal flops"

    def columns(self) -> list[str]:
        return [self.x, *([self.factor] if self.factor else [])]


@dataclass(frozen=True)
class Matches(Statement):
    """The compute multiplier of one variant over another is 1 to within a share."""

    factor: str | None
    candidate: str
    baseline: str
    within: float
    x: str
    pattern = rf"(?:(?P<factor>\S+) )?(?P<candidate>\S+) matches (?P<baseline>\S+) within (?P<within>{NUMBER} %){EQUAL}"
    example = "mup matches sp within 10 % at equal flops"

    def columns(self) -> list[str]:
        return [self.x, *([self.factor] if self.factor else [])]


@dataclass(frozen=True)
class NoiseScale(Statement):
    """The gradient noise scale of every run that measured it, over the second half of its training."""

    bound: Bound
    pattern = rf"noise scale {BOUND} tokens"
    example = "noise scale above 1000 tokens"


@dataclass(frozen=True)
class CriticalBatch(Statement):
    """The critical batch size from the trade-off of steps and tokens to one loss."""

    bound: Bound
    target: float | None
    pattern = rf"critical batch size {BOUND} tokens(?: at loss (?P<target>{NUMBER}))?"
    example = "critical batch size between 1000 and 20000 tokens"


@dataclass(frozen=True)
class Losses(Statement):
    """A measured column: at every setting, or at the best one, as a mean over seeds."""

    which: Literal["every", "lowest"]
    column: str
    bound: Bound
    pattern = rf"(?P<which>every|lowest) (?P<column>\S+) {BOUND}"
    example = "lowest val_loss below 2.2"

    def columns(self) -> list[str]:
        return [self.column]


@dataclass(frozen=True)
class CoversEntropy(Statement):
    """The interval of a fitted floor holds the entropy of the data."""

    symbol: str
    pattern = rf"(?P<symbol>{SYMBOL}) covers {_ENTROPY}"
    example = "E covers the entropy"
    needs = "fit"
    chosen_by = "`fit.where`"


@dataclass(frozen=True)
class Parameter(Statement):
    """A fitted parameter of the study's law, by its symbol."""

    symbol: str
    bound: Bound
    pattern = rf"(?P<symbol>{SYMBOL}) {BOUND}"
    example = "alpha between 0.2 and 0.5"
    needs = "fit"
    chosen_by = "`fit.where`"


FORMS: tuple[type[Statement], ...] = (
    HeldOutError, Drift, OptimumExponent, Beats, Matches, NoiseScale, CriticalBatch, Losses, CoversEntropy, Parameter,
)  # fmt: skip


def parse_claims(claims: Sequence[str], place: str = "claims") -> tuple[Statement, ...]:
    """The statements of a study's `claims:`. Raises UserError with the place and the nearest sentence that can be."""
    return tuple(parse_claim(text, f"{place}.{index}") for index, text in enumerate(claims))


def parse_claim(text: str, place: str = "claims") -> Statement:
    """One statement from its sentence; UserError as `parse_claims`."""
    if not isinstance(text, str):
        raise UserError(f"{place}: expected a sentence such as {HeldOutError.example!r}, found {text!r}")
    sentence, _, where = (part.strip() for part in text.partition(" where "))
    if " where " in text:
        Filter(where, f"{place}: where")
    found = _match(_normal(sentence), " ".join(text.split()), where or None, place)
    if found is None:
        raise UserError(f"{place}: {text!r} is no claim that can be checked{_nearest(sentence)}")
    return found


def _normal(sentence: str) -> str:
    """One space between words, `2%` as `2 %`, `1.5 x` as `1.5x`, no full stop."""
    return " ".join(sentence.replace("%", " % ").split()).rstrip(". ")


def _match(sentence: str, text: str, where: str | None, place: str) -> Statement | None:
    for form in FORMS:
        found = re.fullmatch(form.pattern, sentence)
        if found is not None:
            if where is not None and form.chosen_by is not None:
                raise UserError(f"{place}: {text!r}: this claim takes no `where`; {form.chosen_by} chooses its runs")
            return form(text, where, **_parts(form, found, place))
    return None


def _parts(form: type[Statement], found: "re.Match[str]", place: str) -> dict[str, Any]:
    """The fields of a statement from the groups of its pattern."""
    parts: dict[str, Any] = {key: value for key, value in found.groupdict().items() if key != "x"}
    for key in ("of", "per", "column"):
        if key in parts:
            parts[key] = COMMON_NAMES.get(parts[key], parts[key])
    if "x" in found.groupdict():
        asked = found["x"] or "flops"
        parts["x"] = COMMON_NAMES.get(asked, asked)
    if form is HeldOutError:
        _check_share(parts["bound"], place)
    if "bound" in parts:
        parts["bound"] = _bound(parts["bound"], form is Drift, place)
    for key, empty in (("by", 1.0), ("within", None), ("target", None)):
        if key in parts and form is not HeldOutError:
            parts[key] = _number(parts[key]) if parts[key] else empty
    if form is HeldOutError:
        # The number that reports quote of expanding cuts is their mean; a single cut is judged by its worst run.
        parts["which"] = parts["which"] or ("mean" if parts["by"] == "rollout" else "largest")
    return parts


def _check_share(bound: str, place: str) -> None:
    """An error is a share: 2 would be 200 %, which nobody means, and 0.02 is as easily 0.02 %."""
    for number, percent in re.findall(rf"({NUMBER})( %)?(?= |$)", bound):
        if not percent or _number(number) < 0:
            found = f"{number}{percent}"
            ask = "is below 0" if percent else f"has no %, as in '{number} %'"
            raise UserError(f"{place}: {bound!r}: an error is a share in % from 0 up, and {found!r} {ask}")


def _number(text: str) -> float:
    """A number as people write it: `2 %`, `1_000`, `one`."""
    plain = text.removesuffix("%").strip()
    value = WORDS[plain] if plain in WORDS else float(plain.replace("_", ""))
    return value / 100 if text.endswith("%") else value


def _bound(text: str, both_sides: bool, place: str) -> Bound:
    """The range that a bound in words means; `both_sides` for a drift, which may go either way."""
    share = re.fullmatch(rf"within ({NUMBER} %) of (.+)", text)
    if share is not None:
        by, of_entropy = _number(share[1]), share[2] == _ENTROPY
        about = 1.0 if of_entropy else _number(share[2])
        return Bound(text, about - by * abs(about), about + by * abs(about), of_entropy)
    if text.startswith("between "):
        low, high = map(_number, text.removeprefix("between ").split(" and "))
        if low > high:
            raise UserError(f"{place}: {text!r}: the first number must be the smaller one")
        return Bound(text, low, high)
    value = _number(re.sub(r"^[a-z ]*(?: |^)(?=\S+(?: %)?$)", "", text))
    if any(text.startswith(word) for word in _LOW):
        return Bound(text, low=value)
    return Bound(text, -value if both_sides else -math.inf, value)


def _nearest(sentence: str) -> str:
    """What was probably meant: the sentence with misspelt words put right, else the example that is nearest."""
    words = []
    for word in _normal(sentence).split():
        close = difflib.get_close_matches(word, FIXED_WORDS, n=1, cutoff=0.7)
        words.append(word if word in FIXED_WORDS or not close else close[0])
    mended = " ".join(words)
    if mended != _normal(sentence) and any(re.fullmatch(form.pattern, mended) for form in FORMS):
        return f"; did you mean {mended!r}?"
    example = difflib.get_close_matches(sentence, [form.example for form in FORMS], n=1, cutoff=0.0)[0]
    return f"; claims are such as {example!r} (docs/claims.md lists them)"


def check_claims(
    statements: Iterable[Statement],
    factors: Mapping[str, Collection[Any]],
    sections: Collection[str],
    place: Callable[[int], str],
    symbols: Collection[str] = (),
    batches: int | None = None,
    measures_noise: bool = True,
) -> None:
    """Raises UserError for a claim that this study can never answer: a section it lacks, variants it does not train.

    `factors`: the values of every factor; `sections`: what the study has, as `fit`; `place`: of the claim with an
    index; `symbols`: the parameters of its law, `batches`: how many batch sizes it trains, `measures_noise`: whether a
    run measures the noise scale, each where it is known before the runs.
    """
    for index, statement in enumerate(statements):
        here = place(index)
        if (section := statement.section()) is not None and section not in sections:
            raise UserError(f"{here}: {statement.text!r} needs `{section}:`, which the study does not have")
        if isinstance(statement, Beats | Matches):
            compared_factor(statement, factors, here)
        if isinstance(statement, CoversEntropy | Parameter) and symbols and statement.symbol not in symbols:
            hint = did_you_mean(statement.symbol, symbols)
            raise UserError(f"{here}: {statement.text!r}: the law has no parameter {statement.symbol!r}{hint}")
        if isinstance(statement, NoiseScale) and not measures_noise:
            raise UserError(f"{here}: {statement.text!r}: no run of the study measures it; set "
                            "runtime.noise_scale_interval, such as 10")  # fmt: skip
        if isinstance(statement, CriticalBatch) and batches is not None and batches < LEAST_BATCHES:
            raise UserError(f"{here}: {statement.text!r} needs runs of {LEAST_BATCHES} batch sizes, and the study has "
                            f"{batches}")  # fmt: skip


def compared_factor(statement: Beats | Matches, factors: Mapping[str, Collection[Any]], place: str) -> str:
    """The factor that has both variants among its values. UserError with the nearest value, or the candidates."""
    named = {
        name: {str(value) for value in values} for name, values in factors.items()
        if statement.factor is None or name == statement.factor or name.endswith(f".{statement.factor}")
    }  # fmt: skip
    if not named and statement.factor is None:
        raise UserError(f"{place}: {statement.text!r}: nothing varies in these runs")
    if not named:
        raise UserError(
            f"{place}: {statement.factor!r} is no factor of the study{did_you_mean(statement.factor, factors)}"
        )
    wanted = {statement.candidate, statement.baseline}
    having = [name for name, values in named.items() if wanted <= values]
    if len(having) == 1:
        return having[0]
    if having:
        raise UserError(
            f"{place}: {statement.text!r}: could mean {' or '.join(having)}; put the factor's name in front"
        )
    every = sorted(set().union(*named.values()))
    lacking = next((word for word in (statement.candidate, statement.baseline) if word not in every), None)
    if lacking is not None:
        raise UserError(f"{place}: {lacking!r} is no value of a factor{did_you_mean(lacking, every)}")
    raise UserError(f"{place}: {statement.candidate} and {statement.baseline} are values of different factors")
