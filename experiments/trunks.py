"""Runs of a study that share a WSD trunk: the same steps at the peak learning rate, and what taking them once saves.

Runs that differ in nothing but their horizon train the same steps until the shortest of them cools down (Haegele et al.
2024, arXiv 2405.18392). Workers train the shared steps once (experiments/branching.py), bit-equal to training from
scratch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.lock import LockedRun
from nanogpt.config import canonical_json, why_cut_matters
from nanogpt.config.identity import trunk_identity
from nanogpt.config.training import WSD


@dataclass(frozen=True)
class Trunk:
    """Runs that share a trunk, the longest first. `stable` are the steps of each before its cool-down."""

    runs: tuple[LockedRun, ...]
    stable: tuple[int, ...]

    def stable_of(self, run: LockedRun) -> int:
        """Steps before a run's cool-down that the longest run trains, too."""
        return next(steps for each, steps in zip(self.runs, self.stable, strict=True) if each.id == run.id)

    @property
    def saved_steps(self) -> int:
        """Optimizer steps that need not be trained when every run but the longest starts where it cools down."""
        return sum(self.stable[1:])

    @property
    def saved_flops(self) -> float:
        return sum(run.flops * steps / run.steps for run, steps in zip(self.runs[1:], self.stable[1:], strict=True))


def find_trunks(runs: Sequence[LockedRun]) -> list[Trunk]:
    """The groups of two runs and more that share steps, in the order in which the study holds them."""
    groups: dict[str, list[LockedRun]] = {}
    for run in runs:
        config = run.config
        # Under tau_epoch the weight decay follows the horizon, so the steps differ from the first one on.
        if config["schedule"]["kind"] == "wsd" and config["parametrization"].get("weight_decay_rule") != "tau_epoch":
            groups.setdefault(_key(run), []).append(run)
    return [trunk for group in groups.values() if len(group) > 1 and (trunk := _trunk(group)).saved_steps]


def shared_trunks(runs: Sequence[LockedRun]) -> list[Trunk]:
    """The trunks that workers train once: of runs that save themselves and are not told otherwise."""
    return find_trunks([run for run in runs if _takes_part(run)])


def taken_steps(trunks: Sequence[Trunk]) -> dict[str, int]:
    """The steps that each run but the longest of its trunk takes from that one, by its id."""
    return {run.id: steps for trunk in trunks for run, steps in zip(trunk.runs[1:], trunk.stable[1:], strict=True)}


def _takes_part(run: LockedRun) -> bool:
    runtime = run.config["runtime"]
    keeps = runtime["checkpoint"]["policy"] != "never"
    return bool(keeps and runtime.get("share_trunk", True) and not runtime.get("branch_from"))


def _key(run: LockedRun) -> str:
    tree = {key: value for key, value in run.config.items() if key != "runtime"}
    corpus = {key: value for key, value in tree["data"]["corpus"].items() if key != "path"}
    tree["data"] = {**tree["data"], "corpus": corpus}
    cut = run.config["runtime"].get("micro_batch_size") if why_cut_matters(run.config["model"]) else None
    return canonical_json([trunk_identity(tree), cut])


def _trunk(group: Sequence[LockedRun]) -> Trunk:
    ordered = sorted(group, key=lambda run: -run.steps)
    stable = [WSD.model_validate(run.config["schedule"]).stable_steps(run.steps) for run in ordered]
    longest = stable[0]
    return Trunk(tuple(ordered), tuple(min(steps, longest) for steps in stable))
