"""`Search`: everything that a proposal is made from, as it stands in a study's lock, and the runs it means."""

import copy
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict

from experiments.analysis.filters import Filter
from experiments.grid import Point
from experiments.runspec import RunSpec, make_spec
from experiments.search.sampling import Points, unit_points
from experiments.search.spec import Dimension, Pruner, Sampler
from nanogpt.config import UserError, canonical_json
from nanogpt.config.layers import Layers

MOST_REFUSED = (20, 10)  # proposals of a search that may be refused: so many, and so many per trial


class Refused(BaseModel):
    """A proposal that is no run: its settings, and the reason in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: int
    settings: dict[str, Any]
    reason: str


class Search(BaseModel):
    """The sampler, the space, and the base under them; enough for any worker on any host to propose the next trial.

    `cells` are the points of the sweep's grid: each is searched on its own. Proposal `trial` is number
    `trial // len(cells)` of the search in cell `trial % len(cells)`. `names` are the factors by the keys that set them,
    `whole` the keys that take whole numbers, `settled` the values of `auto` as the study was locked, `data` the
    sha256 of the files that the probed runs read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    sampler: Sampler
    space: dict[str, Dimension]
    pruner: Pruner
    cells: list[dict[str, Any]]
    seeds: list[int] | None
    filters: list[str]
    names: dict[str, str]
    whole: list[str]
    base: dict[str, Any]
    flags: dict[str, Any]
    settled: dict[str, Any] = {}
    data: list[str] = []

    @property
    def trials(self) -> int:
        """How many trials each cell is to have."""
        assert self.sampler.trials is not None, "a sampler that searches has trials"
        return self.sampler.trials

    @property
    def most_proposals(self) -> int:
        """Of one cell: a space that is mostly invalid must end with a word, not go on for ever."""
        return self.trials + MOST_REFUSED[0] + MOST_REFUSED[1] * self.trials

    @property
    def hash(self) -> str:
        """Changes with anything that makes earlier proposals those of another search; not with how many are wanted."""
        tree = self.model_dump(mode="json", exclude={"pruner", "settled"})
        tree["sampler"].pop("trials")
        tree["base"].pop("runtime", None)  # where and how a run is trained is no part of what it is
        return sha256(canonical_json(tree).encode()).hexdigest()[:12]

    @property
    def scales(self) -> dict[str, str]:
        """The factors of the space by their dotted names: log, uniform, int or choice."""
        return {self.names[key]: dimension.kind for key, dimension in self.space.items()}

    @property
    def cell_factors(self) -> list[str]:
        """The factors of the grid that stands beside the space."""
        return list(dict.fromkeys(self.names[key] for cell in self.cells for key in cell))

    def lacking(self, accepted: Sequence[int], proposed: Sequence[int]) -> list[int]:
        """How many trials each cell lacks, given the numbers of its trials and of all its proposals."""
        have = [sum(self.cell(number) == cell for number in accepted) for cell in range(len(self.cells))]
        tried = [sum(self.cell(number) == cell for number in proposed) for cell in range(len(self.cells))]
        pairs = zip(have, tried, strict=True)
        return [max(0, self.trials - n) if asked < self.most_proposals else 0 for n, asked in pairs]

    def cell(self, trial: int) -> int:
        return trial % len(self.cells)

    def points(self, count: int) -> Points:
        """The first `count` points of the random or Sobol sampler; every cell uses the same, so that cells compare."""
        return unit_points(self.sampler, len(self.space), count)

    def settings(self, point: Sequence[float]) -> dict[str, Any]:
        """A point of the unit cube as settings of the space."""
        whole = set(self.whole)
        pairs = zip(self.space.items(), point, strict=True)
        return {key: dimension.value(share, key in whole) for (key, dimension), share in pairs}

    def specs(self, trial: int, settings: Mapping[str, Any]) -> list[RunSpec]:
        """The runs of a proposal, one per seed. Raises UserError with the reason why it is none."""
        base = Layers(copy.deepcopy(self.base), {}, {flag: (value, "") for flag, value in self.flags.items()})
        base.lay(self.settled, {}, "the study")
        cell = self.cells[self.cell(trial)]
        place, specs = f"trial {trial}", []
        for seeded in [{"seed": seed} for seed in self.seeds] if self.seeds else [{}]:
            point = Point({**cell, **settings, **seeded}, {})
            specs.append(make_spec(base, point, self.names, place, trial))
        for text in self.filters:
            if not all(Filter(text, "sweep.filter").keeps(spec.factors) for spec in specs):
                raise UserError(f"{place}: sweep.filter drops it: {text}")
        return specs
