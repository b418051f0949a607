"""The section `plan:` of a study: prices, the law expected beforehand, the noise; and how budgets are written."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiments.supervise import Place, seconds_of, section_problem
from nanogpt.config import UserError

_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
_WATTS = re.compile(_NUMBER + r"\s*(k?)W?", re.I)
_FLOPS = re.compile(_NUMBER.replace("e", "[eE]") + r"\s*(?:([kMGTPEZ]?)(?:FLOP|flop)[sS]?)?")
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
# What a study of the embedded corpus came to (studies/quickstart.yaml), and the replication of Chinchilla's approach 3
# (Besiroglu et al. 2024, arXiv 2404.10102, table 1). Guesses for a plan; the study's own runs replace them.
EMBEDDED = {"E": 1.95, "A": 14.2, "B": 170.0, "alpha": 0.511, "beta": 0.521}
PUBLISHED = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
NOISE = 0.005  # of ln L, about what runs of a study scatter around their law


def watts_of(value: Any) -> float:
    """Watts from `350`, `350W` or `0.35kW`. Raises ValueError for anything else."""
    found = _WATTS.fullmatch(_text(value))
    watts = float(found[1]) * (1000.0 if found[2] else 1.0) if found else math.inf
    if not math.isfinite(watts):
        raise ValueError(f"expected a power such as 350W or 0.7kW, got {value!r}")
    return watts


def flops_of(value: Any) -> float:
    """FLOPs from `1e18`, `1e18FLOP` or `4 TFLOP`. Raises ValueError for anything that is no finite number above 0."""
    found = _FLOPS.fullmatch(_text(value))
    flops = float(found[1]) * _PREFIXES[found[2] or ""] if found else math.inf
    if not 0 < flops < math.inf:
        raise ValueError(f"expected FLOPs above zero such as 1e18 or 4 TFLOP, got {value!r}")
    return flops


def _text(value: Any) -> str:
    """A number or a text as text; nothing for anything else."""
    return str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""


def price_of(value: Any) -> float:
    """Money per hour. Raises ValueError for anything that is no finite number from zero on."""
    try:
        price = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 <= price < math.inf:
        raise ValueError(f"expected money per device and hour such as 2.5 (`currency` names it), got {value!r}")
    return price


def time_of(value: Any) -> float:
    """Seconds of a budget above zero."""
    seconds = seconds_of(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"expected a time above zero, got {value!r}")
    return seconds


def _unless_none(read: Callable[[Any], float]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else read(value))


class PlanSettings(BaseModel):
    """What a plan is reckoned with. A price and a power are those of one device: a GPU, or a worker's whole machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[float | None, _unless_none(time_of)] = Field(
        None, description="Wall time for the whole study on its launcher, such as 3h."
    )
    flops: Annotated[Annotated[float, Field(gt=0)] | None, _unless_none(flops_of)] = Field(
        None, description="Training FLOPs for the whole study, such as 1e18 or 4 TFLOP."
    )
    price: Annotated[Annotated[float, Field(ge=0)] | None, _unless_none(price_of)] = Field(
        None, description="Money per device and hour."
    )
    currency: str = Field("USD", description="Of the price.")
    power: Annotated[float | None, _unless_none(watts_of)] = Field(
        None, description="Power of one device, such as 350W."
    )
    smallest: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Fewest non-embedding parameters of a run proposed; default: those of the study's own runs."
    )
    prior: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        None, description="The law's parameters as expected before the first run, such as {E: 1.9, A: 14, ...}."
    )
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Standard deviation of ln loss from run to run, as expected before the first run."
    )


def check_plan(value: Any, where: Place = "plan", section: str = "plan") -> PlanSettings:
    """The section as a model. Raises UserError in one line, with the place and the nearest name.

    `section` is `--` for the flags of a command line."""
    if value is not None and not isinstance(value, Mapping):
        place = where if isinstance(where, str) else where()
        raise UserError(f"{place}: plan: expected settings such as {{price: 2.5}}, got {value!r}")
    try:
        return PlanSettings.model_validate(dict(value or {}))
    except ValidationError as error:
        raise UserError(section_problem(error, section, where, list(PlanSettings.model_fields))) from None


def guessed_prior(law: str, corpus: str, y: str) -> tuple[dict[str, float], str] | None:
    """Parameters to reckon with where neither runs nor a person give any, and where they come from."""
    if law != "chinchilla" or y != "val_loss":
        return None
    if corpus == "zipf_mixture":
        return EMBEDDED, "assumed: what the quickstart study came to on the embedded corpus"
    return PUBLISHED, "assumed: Besiroglu et al. 2024 for Chinchilla's data; give `plan: {prior: ...}` for yours"
