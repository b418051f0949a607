"""Branching a WSD trunk: start a run from the stable phase of a finished one instead of from scratch, bit-equal."""

from pathlib import Path

from nanogpt import checkpoint
from nanogpt.config import Config, UserError, canonical_json, identity
from nanogpt.config.identity import trunk_identity
from nanogpt.config.training import WSD
from nanogpt.configfile import build_config, load_layers
from nanogpt.describe import describe
from nanogpt.optim import stable_steps


def offered_trunk(config: Config, horizon: int, source: Path | None) -> checkpoint.Loaded | None:
    """As `load_trunk`, of a run that a worker offers: where it cannot be taken, the run starts from scratch."""
    if source is None:
        return None
    runtime = config.runtime.model_copy(update={"branch_from": str(source)})
    try:
        return load_trunk(config.model_copy(update={"runtime": runtime}), horizon)
    except (UserError, OSError) as problem:
        print(f"{problem}; starting from step 0", flush=True)
        return None


def load_trunk(config: Config, horizon: int) -> checkpoint.Loaded | None:
    """The furthest checkpoint of `runtime.branch_from` that lies in the stable phase of both runs.

    None when no branch is asked for. Raises UserError when that run shares no trunk with this one, or has no
    checkpoint early enough.
    """
    if config.runtime.branch_from is None:
        return None
    source = Path(config.runtime.branch_from)
    where = f"runtime.branch_from: {source}"
    trunk = build_config(load_layers(source / "config.yaml"), str(source))
    if not isinstance(config.schedule, WSD) or not isinstance(trunk.schedule, WSD):
        raise UserError(f"{where}: only runs with schedule wsd share a trunk")
    if config.parametrization.weight_decay_rule == "tau_epoch":
        raise UserError(f"{where}: under weight_decay_rule=tau_epoch the decay follows the horizon: no trunk is shared")
    if canonical_json(trunk_identity(identity(config))) != canonical_json(trunk_identity(identity(trunk))):
        raise UserError(f"{where}: differs from this run in more than its horizon and cool-down")
    limit = min(stable_steps(config.schedule, horizon), stable_steps(trunk.schedule, describe(trunk).steps))
    loaded = checkpoint.load_latest(source, before_step=limit)
    if loaded is None:
        hint = "keep some with `runtime.checkpoint: {policy: every_n, every: ...}`"
        raise UserError(f"{where}: no checkpoint at or before step {limit}, where a cool-down begins; {hint}")
    return loaded
