"""What a study may write under `sweep.sampler`, `sweep.space` and `sweep.pruner`; imports nothing heavy."""

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from nanogpt.config import did_you_mean

MOST_TRIALS = 100_000
OPTUNA_SAMPLERS = ("tpe", "cmaes", "gp", "random")
OPTUNA_PRUNERS = ("median", "percentile", "successive_halving", "hyperband", "threshold", "patient")


class _Section(BaseModel):
    """Frozen, unknown keys refused, as everywhere in a study."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Sampler(_Section):
    """Where the settings of a trial come from. `random` and `sobol` are functions of (seed, trial) alone."""

    kind: Literal["grid", "random", "sobol", "optuna"] = "grid"
    trials: Annotated[int, Field(strict=True, ge=1, le=MOST_TRIALS)] | None = Field(
        None, description="Trials of each search; refused proposals do not count."
    )
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    optuna: dict[str, Any] = Field({}, description="`sampler` (tpe, cmaes, gp, random) and its own settings.")

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Self:
        if self.kind == "grid" and (self.trials is not None or self.seed or self.optuna):
            raise ValueError("a grid takes no trials, seed or optuna; choose random, sobol or optuna")
        if self.kind != "grid" and self.trials is None:
            raise ValueError(f"{self.kind} needs trials: how many settings are tried")
        if self.optuna and self.kind != "optuna":
            raise ValueError(f"the settings under optuna mean nothing to {self.kind}")
        name = self.optuna.get("sampler", "tpe")
        if name not in OPTUNA_SAMPLERS:
            raise ValueError(f"optuna.sampler: no such sampler {name!r}{did_you_mean(name, OPTUNA_SAMPLERS)}")
        if "seed" in self.optuna:
            raise ValueError("optuna.seed: give the seed beside trials; every trial's own seed is made from it")
        return self


Range = tuple[float, float]
WholeRange = tuple[Annotated[int, Field(strict=True)], Annotated[int, Field(strict=True)]]


class Dimension(_Section):
    """One factor of the space: exactly one of the four, with both ends included."""

    log: Range | None = Field(None, description="From low to high, uniform in the logarithm.")
    uniform: Range | None = Field(None, description="From low to high, uniform.")
    whole: WholeRange | None = Field(None, alias="int", description="Whole numbers from low to high.")
    choice: Annotated[list[Any], Field(min_length=2)] | None = Field(None, description="One of these values.")

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        given = [name for name in ("log", "uniform", "whole", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected one of log, uniform, int, choice")
        if self.choice is None:
            low, high = self.ends
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"expected a low and a higher end, got {low!r} and {high!r}")
            if self.log is not None and low <= 0:
                raise ValueError(f"log: both ends must be above 0, got {low!r}")
        elif any(value in self.choice[:index] for index, value in enumerate(self.choice)):
            raise ValueError("choice: holds a value twice")
        return self

    @property
    def ends(self) -> Range:
        """Low and high of a range of numbers."""
        ends = self.log or self.uniform or self.whole
        assert ends is not None, "a choice has no ends"
        return ends

    @property
    def kind(self) -> str:
        """The word that the study used."""
        names = {"log": self.log, "uniform": self.uniform, "int": self.whole, "choice": self.choice}
        return next(name for name, value in names.items() if value is not None)

    def value(self, share: float, is_whole: bool = False) -> Any:
        """The setting at `share` in [0, 1) of this range; `is_whole` rounds for a key that takes whole numbers."""
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        low, high = self.ends
        if self.whole is not None:
            return int(low) + int(share * (int(high) - int(low) + 1))
        value = low * (high / low) ** share if self.log is not None else low + (high - low) * share
        # 12 digits, as in a grid: the ids do not hang on the last bit of one machine's power function.
        return round(value) if is_whole else float(f"{value:.12g}")


def _as_fractions(value: Any) -> Any:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Fraction = Annotated[float, Field(gt=0, lt=1)]


class Pruner(_Section):
    """Which trials end early, judged on validation loss at given fractions of their horizon."""

    kind: Literal["none", "successive_halving", "median", "percentile", "optuna"] = "none"
    at: Annotated[tuple[Fraction, ...], BeforeValidator(_as_fractions)] = Field(
        (), description="Fractions of the horizon, rising; judged at the first evaluation at or after each."
    )
    keep: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the trials seen at a rung that goes on: 1/3; of median 1/2, of percentile required."
    )
    min_trials: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="Trials that a rung must have seen, this one included, before it ends any."
    )
    optuna: dict[str, Any] = Field(
        {}, description="`pruner` (median, percentile, successive_halving, hyperband, threshold, patient) and its own "
        "settings, whose steps are percent of the horizon."
    )  # fmt: skip

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Self:
        if self.kind == "none":
            if self.at or self.keep is not None or self.min_trials is not None or self.optuna:
                raise ValueError("none takes no settings; choose successive_halving, median, percentile or optuna")
            return self
        if not self.at or list(self.at) != sorted(set(self.at)):
            raise ValueError("at: expected rising fractions of the horizon such as [0.25, 0.5]")
        if self.kind == "median" and self.keep is not None:
            raise ValueError("keep: the median keeps one half; choose percentile for another share")
        if self.kind == "percentile" and self.keep is None:
            raise ValueError("keep: percentile needs the share that goes on")
        if self.optuna and self.kind != "optuna":
            raise ValueError(f"the settings under optuna mean nothing to {self.kind}")
        if self.kind == "optuna":
            self._check_optuna()
        return self

    def _check_optuna(self) -> None:
        if self.keep is not None or self.min_trials is not None:
            raise ValueError(
                "optuna's pruners have settings of their own; give them under optuna, not keep, min_trials"
            )
        if "pruner" not in self.optuna:
            raise ValueError(f"optuna.pruner: is missing; one of {', '.join(OPTUNA_PRUNERS)}")
        check_optuna_pruner(self.optuna["pruner"])
        percents = [percent(fraction) for fraction in self.at]
        if len(set(percents)) < len(percents) or not 0 < percents[0] <= percents[-1] < 100:
            raise ValueError(
                f"at: optuna's pruners count whole percents of the horizon, which these are not: {percents}"
            )

    @property
    def share(self) -> float:
        """The share of the trials at a rung that goes on."""
        return self.keep if self.keep is not None else {"median": 0.5}.get(self.kind, 1 / 3)

    @property
    def least(self) -> int:
        """How many trials a rung must have seen before it ends one."""
        return self.min_trials or {"successive_halving": math.ceil(1 / self.share - 1e-9)}.get(self.kind, 5)


def percent(fraction: float) -> int:
    """A fraction of the horizon as the step that optuna is told."""
    return round(100 * fraction)


def check_optuna_pruner(name: Any) -> None:
    """Raises ValueError for a name that is none of optuna's pruners, and for one that is left out, with the reason."""
    if name == "wilcoxon":
        raise ValueError(
            "optuna.pruner: wilcoxon compares independent measurements, and the losses along one run are not; "
            "choose median or percentile"
        )
    if name not in OPTUNA_PRUNERS:
        raise ValueError(f"optuna.pruner: no such pruner {name!r}{did_you_mean(name, OPTUNA_PRUNERS)}")


def _named(value: Any) -> Any:
    """`sampler: grid` and `pruner: none` mean the kind."""
    return {"kind": value} if isinstance(value, str) else value


def _one_word_too(section: type[BaseModel]) -> dict[str, Any]:
    kinds = {"enum": list(get_args(section.model_fields["kind"].annotation))}
    return {"anyOf": [kinds, section.model_json_schema()]}


SamplerField = Annotated[Sampler, BeforeValidator(_named), WithJsonSchema(_one_word_too(Sampler))]
PrunerField = Annotated[Pruner, BeforeValidator(_named), WithJsonSchema(_one_word_too(Pruner))]
Space = dict[str, Dimension]


def problem_of(sampler: Sampler, space: Space, pruner: Pruner) -> str | None:
    """What a sweep's search sections cannot mean together, in one line."""
    if sampler.kind == "grid":
        for name, given in (("space", bool(space)), ("pruner", pruner.kind != "none")):
            if given:
                return (
                    f"{name}: means nothing to a grid; give sampler: {{kind: random, trials: 40}}, or sobol or optuna"
                )
        return None
    if not space:
        return f"sampler: {sampler.kind} needs a space, such as space: {{learning_rate: {{log: [1e-4, 1e-1]}}}}"
    if "seed" in space:
        return "space: the seed is no setting to search; name seeds, and every trial is trained once with each"
    return None
