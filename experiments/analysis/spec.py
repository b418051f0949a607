"""A study's analysis (`fit:`, `optimum:`, `approaches:`, `compare:`, `report:`), checked before anything launches."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from experiments.analysis.filters import Filter
from experiments.analysis.laws import LAWS, law_inputs, make_law
from nanogpt.config import UserError, did_you_mean

# The inputs whose columns a study may choose, by law: the laws' own, read without numpy.
LAW_INPUTS: dict[str, tuple[str, ...]] = {name: law.inputs() for name, law in LAWS.items()}
LossName = Literal["huber", "lad", "lsq"]
FigureName = Literal[
    "loss_vs_compute", "training_curves", "predicted_vs_measured", "residuals", "loss_vs", "loss_heatmap",
    "lr_basin", "lr_transfer", "response_surface", "isoflop_slices", "compute_envelope", "loss_contours",
    "rollout_errors", "corner", "profiles", "multiplier_forest", "optimum_law", "batch_trade_off",
]  # fmt: skip


def _parses(text: str | None) -> str | None:
    if text is not None:
        Filter(text, "filter")
    return text


Where = Annotated[str | None, AfterValidator(_parses)]


class _Section(BaseModel):
    """Frozen, unknown keys refused, as everywhere in a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _input_field(defaults: Mapping[str, str]) -> Any:
    """The study key of one law input, described by the laws that have it."""
    laws_by_column: dict[str, list[str]] = {}
    for law, column in defaults.items():
        laws_by_column.setdefault(column, []).append(law)
    uses = "; ".join(f"{column} ({', '.join(laws)})" for column, laws in laws_by_column.items())
    return (str | None, Field(None, description=f"input column; default: {uses}"))


if TYPE_CHECKING:  # both follow from the registry of laws, which a type checker cannot run
    LawName = str
    _LawInputs = _Section
else:
    LawName = Literal[tuple(LAWS)]
    _LawInputs = create_model(
        "_LawInputs", __base__=_Section, **{name: _input_field(defaults) for name, defaults in law_inputs().items()}
    )


class HoldoutSpec(_Section):
    """Which runs are predicted instead of fitted: exactly one of `fraction`, `below`, `largest`."""

    by: str = Field("flops", description="column the cut is made on")
    fraction: float | None = Field(None, gt=0, lt=1, description="share of the runs held out, the largest ones")
    below: float | None = Field(None, gt=0, description="fit the runs below this value, predict those at or above it")
    largest: int | None = Field(None, ge=1, description="how many distinct values of `by` are held out, from the top")
    max_error: float = Field(0.03, gt=0, description="largest relative error at which the prediction counts as good")

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        if sum(cut is not None for cut in (self.fraction, self.below, self.largest)) != 1:
            raise ValueError("give exactly one of fraction, below, largest")
        return self


class RolloutSpec(_Section):
    """Expanding cuts: a law is fitted below each and judged by the runs above."""

    by: str = Field("flops", description="column the cuts are made on")
    cuts: int | tuple[float, ...] = Field(
        5, description="how many cuts, leaving 50 to 90 % of the runs below; or values"
    )


class FitSpec(_LawInputs):
    """A law, the columns it reads, the loss it is fitted with, and what is held out."""

    law: LawName = "chinchilla"
    y: str = Field("val_loss", description="the loss column that is fitted")
    loss: LossName = Field("huber", description="on ln L, summed over the points")
    delta: float = Field(1e-3, gt=0, description="Huber threshold in ln L")
    where: Where = Field(None, description="filter on the rows, such as 'tokens >= 262144'")
    holdout: HoldoutSpec | None = None
    rollout: RolloutSpec = Field(RolloutSpec(), description="the held-out error that every report of a fit carries")
    bootstrap: int = Field(200, ge=0, description="resamples behind the intervals; 0 for none")
    resample: Literal["residual", "pairs"] | None = Field(
        None, description="how they are drawn (default: residual, with `cluster` pairs)"
    )
    cluster: str | None = Field(None, description="column whose equal values are resampled together")
    intervals: Literal["bootstrap", "profile"] | None = Field(
        None, description="of the parameters (default: what is known to cover for the law; with `cluster` bootstrap)"
    )
    seed: int = Field(0, ge=0, description="of the bootstrap")
    trust_units: bool = Field(False, description="fit although units seem to be mixed in a column")

    @field_validator("bootstrap")
    @classmethod
    def _one_has_no_spread(cls, bootstrap: int) -> int:
        if bootstrap == 1:
            raise ValueError("must be 0 (no resamples) or at least 2, found 1: one has no spread")
        return bootstrap

    @model_validator(mode="after")
    def _clusters_are_drawn_whole(self) -> Self:
        if self.cluster is not None and self.intervals == "profile":
            raise ValueError(
                "intervals profile take runs as independent, so they cannot go with cluster; bootstrap can"
            )
        if self.cluster is not None and self.resample == "residual":
            raise ValueError("resample residual takes runs as independent, so it cannot go with cluster; pairs can")
        return self

    def chosen_columns(self) -> dict[str, str | None]:
        """The column of each input of the law, None for its default."""
        return {name: getattr(self, name) for name in LAW_INPUTS[self.law]}

    @model_validator(mode="after")
    def _columns_fit_the_law(self) -> Self:
        for key in law_inputs():
            if key not in LAW_INPUTS[self.law] and getattr(self, key) is not None:
                raise ValueError(f"law {self.law} has no input {key!r}")
        return self


class OptimumSpec(_Section):
    """Where the loss is lowest, per size, and how much may be lost by using one size's optimum at the others."""

    of: str = Field(description="column whose best value is looked for, such as learning_rate")
    per: str = Field(description="column of the size, such as n_embd")
    panel: str | None = Field(None, description="column whose values are judged apart, such as mode")
    base: int | float | str | None = Field(None, description="size whose optimum the others use (default: smallest)")
    y: str = Field("val_loss", description="the loss")
    where: Where = Field(None, description="filter on the rows, such as 'batch_size == 32'")
    window: int = Field(2, ge=1, description="grid steps to either side of the lowest mean that are fitted")
    max_drift: float = Field(1.0, gt=0, description="octaves that an optimum may lie from the base's")
    max_regret: float = Field(0.02, gt=0, description="loss that the base's optimum may cost; or 2 sd over seeds")
    bootstrap: int = Field(400, ge=0, description="resamples of seeds behind the intervals; 0 for none")
    seed: int = 0


class ApproachesSpec(_Section):
    """Compute-optimal sizes by envelope, IsoFLOP slices and surface, side by side under every way of counting."""

    n: str | None = Field(
        None, description="size column (default: that of a chinchilla fit, else n_params_non_embedding)"
    )
    y: str = Field("val_loss", description="the loss")
    where: Where = Field(None, description="filter on the rows")
    read: Literal["runs", "curves"] = Field("runs", description="final losses, or training curves (constant rate only)")
    budgets: int | tuple[float, ...] | None = Field(
        None, description="FLOPs of the slices, or how many (default: as run)"
    )
    window: int | None = Field(7, ge=4, description="sizes nearest to the lowest loss that a parabola takes; null: all")
    noise: float | None = Field(None, ge=0, description="sd of a loss (default: over seeds, else about parabolas)")
    at: float | None = Field(
        None, gt=0, description="compute that sizes are quoted for (default: the largest measured)"
    )
    draws: int = Field(400, ge=0, description="disturbed tables behind the intervals; 0 for none")
    seed: int = 0


class CompareSpec(_Section):
    """Variants ranked by what they make of their compute, against a baseline and against each other."""

    factor: str = Field("variant", description="what is compared, such as variant or optimizer.kind")
    baseline: str | int | float | bool = Field(description="the value of the factor that the others are held against")
    x: str = Field("flops", description="the cost")
    y: str = Field("val_loss", description="the loss")
    where: Where = Field(None, description="filter on the rows")


class FigureSpec(_Section):
    """One figure of the report; what is left out comes from the report section itself."""

    figure: FigureName
    x: str | None = None
    y: str | None = None
    hue: str | None = None
    rows: str | None = None


class ReportSpec(_Section):
    """Which figures a report shows, and the columns they use unless a figure says otherwise."""

    figures: tuple[FigureSpec, ...] | None = Field(None, description="default: chosen from what the study has")
    x: str | None = Field(None, description="column along the horizontal axis")
    y: str = Field("val_loss", description="loss column")
    hue: str | None = Field(None, description="column behind the colours")
    rows: str | None = Field(None, description="column down the side of a heat map")

    @field_validator("figures", mode="before")
    @classmethod
    def _names_are_figures(cls, figures: Any) -> Any:
        if not isinstance(figures, list | tuple):
            return figures
        return tuple({"figure": item} if isinstance(item, str) else item for item in figures)


def columns_named(
    fit: FitSpec | None,
    report: ReportSpec,
    optimum: OptimumSpec | None = None,
    approaches: ApproachesSpec | None = None,
    compare: CompareSpec | None = None,
) -> list[tuple[str, str]]:
    """Every column that a study's analysis reads, with the key that names it."""
    found = []
    if compare is not None:
        found += [(f"compare.{key}", getattr(compare, key)) for key in ("factor", "x", "y")]
        names = Filter(compare.where, "compare.where").names() if compare.where else ()
        found += [("compare.where", name) for name in names]
    if approaches is not None:
        found += [(f"approaches.{key}", getattr(approaches, key)) for key in ("n", "y")]
        names = Filter(approaches.where, "approaches.where").names() if approaches.where else ()
        found += [("approaches.where", name) for name in names]
    if optimum is not None:
        found += [(f"optimum.{key}", getattr(optimum, key)) for key in ("of", "per", "panel", "y")]
        names = Filter(optimum.where, "optimum.where").names() if optimum.where else ()
        found += [("optimum.where", name) for name in names]
    if fit is not None:
        law = make_law(fit.law, **fit.chosen_columns())  # its defaults are columns that a table may lack, too
        found += [(f"fit.{key}", getattr(law, key)) for key in law.inputs()]
        found += [(f"fit.{key}", getattr(fit, key)) for key in ("y", "cluster")]
        found += [("fit.where", name) for name in (Filter(fit.where, "fit.where").names() if fit.where else ())]
        found += [("fit.holdout.by", fit.holdout.by)] if fit.holdout is not None else []
        found += [("fit.rollout.by", fit.rollout.by)]
    found += [(f"report.{key}", getattr(report, key)) for key in ("x", "y", "hue", "rows")]
    for index, figure in enumerate(report.figures or ()):
        found += [(f"report.figures.{index}.{key}", getattr(figure, key)) for key in ("x", "y", "hue", "rows")]
    return [(key, name) for key, name in found if name is not None]


def column_among(columns: Iterable[str], name: str, place: str) -> str:
    """The column that `name` means: itself, or the one whose ending it is. UserError with the candidates or nearest."""
    known = list(columns)
    if name in known:
        return name
    ending = [column for column in known if column.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"{place}: column {name!r} is ambiguous: {', '.join(ending)}")
    names = dict.fromkeys([*known, *(column.rpartition(".")[2] for column in known)])
    raise UserError(f"{place}: no column {name!r}{did_you_mean(name, names)}")


_Model = TypeVar("_Model", bound=_Section)
EXAMPLES = {
    "FitSpec": "{law: chinchilla}",
    "OptimumSpec": "{of: learning_rate, per: n_embd}",
    "ReportSpec": "{figures: [loss_vs]}",
    "ApproachesSpec": "{noise: 0.002}",
    "CompareSpec": "{factor: variant, baseline: plain}",
}


def check_fit_spec(spec: Mapping[str, Any], where: str = "fit") -> FitSpec:
    """The validated `fit:` section; UserError in one line with the place, the value and the nearest right name."""
    return _check(FitSpec, spec, where)


def check_optimum_spec(spec: Mapping[str, Any], where: str = "optimum") -> OptimumSpec:
    """The validated `optimum:` section; UserError as `check_fit_spec`."""
    return _check(OptimumSpec, spec, where)


def check_approaches_spec(spec: Mapping[str, Any], where: str = "approaches") -> ApproachesSpec:
    """The validated `approaches:` section; UserError as `check_fit_spec`."""
    return _check(ApproachesSpec, spec, where)


def check_compare_spec(spec: Mapping[str, Any], where: str = "compare") -> CompareSpec:
    """The validated `compare:` section; UserError as `check_fit_spec`."""
    return _check(CompareSpec, spec, where)


def check_report_spec(spec: Mapping[str, Any], where: str = "report") -> ReportSpec:
    """The validated `report:` section; UserError as `check_fit_spec`."""
    return _check(ReportSpec, spec, where)


def _check(model: type[_Model], spec: Mapping[str, Any], where: str) -> _Model:
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: expected a mapping such as {EXAMPLES[model.__name__]}, found {spec!r}")
    try:
        return model.model_validate(dict(spec))
    except ValidationError as error:
        raise UserError(_one_line(error, model, where)) from error


def _one_line(error: ValidationError, model: type[_Section], where: str) -> str:
    """The first mistake only, in a person's words."""
    first = error.errors(include_url=False)[0]
    steps = [str(step) for step in first["loc"]]
    place = ".".join([where, *steps])
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[_Section]] = {"holdout": HoldoutSpec, "rollout": RolloutSpec, "figures": FigureSpec}
        owner = parts.get(steps[0], model) if len(steps) > 1 else model
        return f"{place}: no such key{did_you_mean(steps[-1], owner.model_fields)}"
    if first["type"] == "missing":
        return f"{place}: is missing; a whole section is such as {EXAMPLES[model.__name__]}"
    if first["type"] == "literal_error":
        allowed = [name.strip("' ") for name in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{place}: {first['input']!r} is not known{did_you_mean(first['input'], allowed)}"
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']}"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
