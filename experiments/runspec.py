"""`RunSpec`: one point of a sweep as a validated config that is not yet resolved, and what varies in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.factors import factor_values, label_of
from experiments.grid import Point
from nanogpt.config import Config, UserError
from nanogpt.config.layers import Layers
from nanogpt.configfile import build_config


@dataclass(frozen=True)
class RunSpec:
    """One point of the sweep: a validated config that is not yet resolved, and what varies in it.

    `trial` is the number of the proposal that it belongs to, in a study that searches.
    """

    config: Config
    factors: Mapping[str, Any]
    label: str
    place: str
    trial: int | None = None


def make_spec(
    base: Layers, point: Point, names: Mapping[str, str], default_place: str, trial: int | None = None
) -> RunSpec:
    """Lay a point over the base and validate the whole. `names` are the factors by key.

    Raises UserError with the place of what is wrong.
    """
    layers = base.copy()
    place = next(iter(point.places.values()), default_place)
    if point.variant is not None:
        place = point.variant.place
        layers.lay(point.variant.settings, {}, place)
    layers.lay(point.settings, {(key,): place for key, place in point.places.items()}, default_place)
    config = build_config(layers, place)
    refuse_folders(config, layers, place)
    factors = factor_values(config, point, names)
    return RunSpec(config, factors, label_of(factors), place, trial)


def refuse_folders(config: Config, layers: Layers, place: str) -> None:
    """Settings that only mean something for a single run a person starts by hand."""
    settings = config.runtime
    for key, is_set in (("out_dir", settings.out_dir is not None), ("resume", settings.resume != "auto")):
        if is_set:
            where = layers.place(("runtime", key)) or place
            raise UserError(f"{where}: runtime.{key}: a study decides itself where its runs lie and when they resume")
    if settings.branch_from is not None and not (Path(settings.branch_from) / "config.yaml").is_file():
        where = layers.place(("runtime", "branch_from")) or place
        raise UserError(f"{where}: runtime.branch_from: no run's folder: {settings.branch_from}")
