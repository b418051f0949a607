"""Model shapes a design may use: the study's own way to grow a model, snapped to what attention and RoPE allow."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import engine
from experiments.lock import LockedRun
from experiments.planner.amounts import short
from nanogpt.config import UserError

RUNGS_PER_OCTAVE = 4  # of width
NARROWEST, WIDEST = 4, 16384
GRAIN = 8  # widths keep to multiples of it where all of the study's do
DEEPEST = 256
Model = Mapping[str, Any]


@dataclass(frozen=True)
class Studied:
    """The sizes of which a study has runs, non-embedding parameters, and the smallest that may be proposed."""

    least: int
    most: int
    allowed: int

    def without_smaller(self, rungs: "Sequence[Rung]") -> "list[Rung]":
        """What the study leaves out below its own sizes bends its law, so it is proposed only where it is asked for."""
        return [rung for rung in rungs if rung.n >= self.allowed]

    def told(self, sizes: Sequence[int]) -> str:
        """Where sizes lie outside the study's own, in words; empty where none does."""
        below, above = min(sizes) < self.least, max(sizes) > self.most
        ends = [f"down to {short(min(sizes))} parameters, where the law may bend"] * below
        ends += [f"up to {short(max(sizes))}, {max(sizes) / max(1, self.most):.2g} times its largest"] * above
        own = f"{short(self.least)} to {short(self.most)} parameters"
        return f"leaves the sizes that the study has, {own}: {' and '.join(ends)}" if ends else ""


def studied(runs: Sequence[LockedRun], smallest: int | None) -> Studied:
    """The sizes of the runs; `smallest` is what a person allows below them."""
    sizes = [run.n_params_non_embedding for run in runs]
    return Studied(min(sizes), max(sizes), min(sizes) if smallest is None else smallest)


@dataclass(frozen=True)
class Rung:
    """One shape: the settings that make it, and a run of it, whose length means nothing yet."""

    settings: dict[str, int]
    run: LockedRun

    @property
    def n(self) -> int:
        """Non-embedding parameters."""
        return self.run.n_params_non_embedding

    def trained(self, tokens: float) -> LockedRun:
        """The run of this shape for so many tokens, rounded to steps as the engine does."""
        per_step = self.run.config["train"]["batch_size"] * self.run.config["model"]["block_size"]
        steps = max(1, math.floor(tokens / per_step + 0.5))
        flops = float(steps * per_step * self.run.flops_per_token)
        return self.run.model_copy(update={"steps": steps, "tokens": steps * per_step, "flops": flops})


def ladder(runs: Sequence[LockedRun], largest: float, smallest: float = 0.0) -> list[Rung]:
    """Shapes of about `smallest` to `largest` non-embedding parameters, the smallest first, described by one child.

    A study that varies the width grows along the (width, depth, heads) of its own runs; one that varies only the depth
    grows in depth; one that varies neither grows in width with heads of one size.
    """
    models = [run.config["model"] for run in runs]
    widths = {model["n_embd"] for model in models}
    grows_deep = len(widths) == 1 and len({model["n_layer"] for model in models}) > 1
    found = _by_depth(models[0]) if grows_deep else _by_width(models)
    blocks = [each.get("n_layer") or runs[0].n_params_non_embedding / (12 * models[0]["n_embd"] ** 2) for each in found]
    sizes = [12 * count * each["n_embd"] ** 2 for count, each in zip(blocks, found, strict=True)]
    kept = [each for each, size in zip(found, sizes, strict=True) if smallest / 4 <= size <= 4 * largest]
    varying = [key for key in _KEYS if len({each.get(key) for each in found}) > 1]
    trees = [{**runs[0].config, "model": {**models[0], **each}} for each in kept]
    facts = engine.describe(trees, elsewhere=True)
    rungs = [
        Rung({key: each[key] for key in varying}, _run_of(runs[0], told))
        for each, told in zip(kept, facts, strict=True)
        if "error" not in told
    ]
    if not rungs:
        why = facts[0]["error"] if facts else "none is of that size"
        raise UserError(f"no shape like {runs[0].label} can be built: {why}")
    return sorted(rungs, key=lambda rung: rung.n)


def _run_of(like: LockedRun, facts: Mapping[str, Any]) -> LockedRun:
    """A run of a described shape."""
    known = {key: value for key, value in facts.items() if key in LockedRun.model_fields}
    factors = {**like.factors, **{f"model.{key}": facts["config"]["model"][key] for key in _KEYS}}
    return LockedRun.model_validate({**known, "asked": "", "label": like.label, "factors": factors})


_KEYS = ("n_embd", "n_layer", "n_head", "n_kv_head")


def _by_depth(model: Model) -> list[dict[str, int]]:
    depths = dict.fromkeys(round(2 ** (step / RUNGS_PER_OCTAVE)) for step in range(64))
    fixed = {key: model[key] for key in ("n_embd", "n_head")}
    return [{**fixed, "n_layer": depth} for depth in depths if depth <= DEEPEST]


def _by_width(models: Sequence[Model]) -> list[dict[str, int]]:
    """Widths some way apart; depth and heads follow the study's runs, or the first of them where those do not vary."""
    path = {model["n_embd"]: model for model in models}
    first = models[0]
    heads_vary = len({model["n_head"] for model in models}) > 1
    one_size = len({model["n_embd"] for model in models}) == 1 or heads_vary
    even = 2 if first["position"] == "rope" else 1
    head = max(even, first["n_embd"] // first["n_head"])
    unit = math.lcm(
        head if one_size else even * first["n_head"], math.gcd(GRAIN, *(model["n_embd"] for model in models))
    )
    found = []
    targets = [NARROWEST * 2 ** (step / RUNGS_PER_OCTAVE) for step in range(64)]
    for width in dict.fromkeys(max(unit, round(target / unit) * unit) for target in targets if target <= WIDEST):
        heads = max(1, width // head) if one_size else first["n_head"]
        shape = {"n_embd": width, "n_head": heads}
        if first["n_layer"] is not None:  # a trunk that counts its own blocks keeps its counts
            shape["n_layer"] = _depth_at(width, path)
        if first.get("n_kv_head"):
            shape["n_kv_head"] = _key_value_heads(heads, first["n_kv_head"] / first["n_head"])
        found.append(shape)
    return found


def _depth_at(width: int, path: Mapping[int, Model]) -> int:
    """The depth along the study's runs, by straight lines in the logarithms; beyond them, the nearest run's aspect."""
    known = sorted((found, model["n_layer"]) for found, model in path.items() if model["n_layer"] is not None)
    (low, shallow), (high, deep) = known[0], known[-1]
    if shallow == deep:
        return int(shallow)
    if width <= low or width >= high:
        reference, depth = (low, shallow) if width <= low else (high, deep)
        return max(1, round(depth * width / reference))
    for (left, before), (right, after) in itertools.pairwise(known):
        if left <= width <= right:
            share = math.log(width / left) / math.log(right / left)
            return max(1, round(before * (after / before) ** share))
    return int(deep)


def _key_value_heads(heads: int, share: float) -> int:
    """The divisor of the heads that is nearest to the study's share of key/value heads."""
    divisors = [count for count in range(1, heads + 1) if heads % count == 0]
    return min(divisors, key=lambda count: abs(math.log(count / (heads * share))))
