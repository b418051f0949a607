"""Runs of a study that share a WSD trunk: the same steps at the peak learning rate, and what taking them once saves.

Runs that differ in nothing but their horizon train the same steps until the shortest of them cools down (Haegele et al.
2024, arXiv 2405.18392). The engine continues a run from another's stable phase with `runtime.branch_from`, bit-equal.
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

    @property
    def saved_steps(self) -> int:
        """Optimizer steps that need not be trained when every run but the longest starts where it cools down."""
        return sum(self.stable[1:])

    @property
    def saved_flops(self) -> float:
        return sum(run.flops * steps / run.steps for run, steps in zip(self.runs[1:], self.stable[1:], strict=True))

    @property
    def every(self) -> int:
        """Steps between kept checkpoints of the longest run that let the others begin at, or near, their cool-downs."""
        return max(1, min(self.stable))


def find_trunks(runs: Sequence[LockedRun]) -> list[Trunk]:
    """The groups of two runs and more that share steps, in the order in which the study holds them."""
    groups: dict[str, list[LockedRun]] = {}
    for run in runs:
        config = run.config
        # Under tau_epoch the weight decay follows the horizon, so the steps differ from the first one on.
        if config["schedule"]["kind"] == "wsd" and config["parametrization"].get("weight_decay_rule") != "tau_epoch":
            groups.setdefault(_key(run), []).append(run)
    return [trunk for group in groups.values() if len(group) > 1 and (trunk := _trunk(group)).saved_steps]


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
