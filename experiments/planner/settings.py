"""The section `plan:` of a study: prices, the law expected beforehand, the noise; and how budgets are written."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiments.supervise import Place, seconds_of, section_problem
from nanogpt.config import UserError

_WATTS = re.compile(r"(\d+(?:\.\d+)?)\s*(k?)W?", re.I)
# What a study of the embedded corpus came to (studies/quickstart.yaml), and the replication of Chinchilla's approach 3
# (Besiroglu et al. 2024, arXiv 2404.10102, table 1). Guesses for a plan; the study's own runs replace them.
EMBEDDED = {"E": 1.95, "A": 14.2, "B": 170.0, "alpha": 0.511, "beta": 0.521}
PUBLISHED = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
NOISE = 0.005  # of ln L, about what runs of a study scatter around their law


def watts_of(value: Any) -> float:
    """Watts from `350`, `350W` or `0.35kW`. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    found = _WATTS.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"expected a power such as 350W or 0.7kW, got {value!r}")
    return float(found[1]) * (1000.0 if found[2] else 1.0)


def time_of(value: Any) -> float | None:
    """Seconds of a budget above zero."""
    seconds = None if value is None else seconds_of(value)
    if seconds == 0:
        raise ValueError("expected a time above zero, got 0")
    return seconds


class PlanSettings(BaseModel):
    """What a plan is reckoned with. A price and a power are those of one device: a GPU, or a worker's whole machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[float | None, BeforeValidator(time_of)] = Field(
        None, description="Wall time for the whole study on its launcher, such as 3h."
    )
    flops: Annotated[float, Field(gt=0)] | None = Field(None, description="Training FLOPs for the whole study.")
    price: Annotated[float, Field(ge=0)] | None = Field(None, description="Money per device and hour.")
    currency: str = Field("USD", description="Of the price.")
    power: Annotated[float | None, BeforeValidator(lambda value: None if value is None else watts_of(value))] = Field(
        None, description="Power of one device, such as 350W."
    )
    prior: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="The law's parameters as expected before the first run, such as {E: 1.9, A: 14, ...}."
    )
    noise: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Standard deviation of ln loss from run to run, as expected before the first run."
    )


def check_plan(value: Any, where: Place = "plan") -> PlanSettings:
    """The section as a model. Raises UserError in one line, with the place and the nearest name."""
    if value is not None and not isinstance(value, Mapping):
        place = where if isinstance(where, str) else where()
        raise UserError(f"{place}: plan: expected settings such as {{price: 2.5}}, got {value!r}")
    try:
        return PlanSettings.model_validate(dict(value or {}))
    except ValidationError as error:
        raise UserError(section_problem(error, "plan", where, list(PlanSettings.model_fields))) from None


def guessed_prior(law: str, corpus: str, y: str) -> tuple[dict[str, float], str] | None:
    """Parameters to reckon with where neither runs nor a person give any, and where they come from."""
    if law != "chinchilla" or y != "val_loss":
        return None
    if corpus == "zipf_mixture":
        return EMBEDDED, "assumed: what the quickstart study came to on the embedded corpus"
    return PUBLISHED, "assumed: Besiroglu et al. 2024 for Chinchilla's data; give `plan: {prior: ...}` for yours"
