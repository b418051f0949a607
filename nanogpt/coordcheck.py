"""The coordinate check: train one config at several sizes for a few steps and record how large activations are.

Under a right parametrization neither an activation nor its change since initialization depends on the size (Tensor
Programs V, arXiv 2203.03466, appendix D.1; in depth CompleteP, arXiv 2505.01618, section 4).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nanogpt.config import Config, UserError, did_you_mean
from nanogpt.config.trunks import Recurrent, Shared
from nanogpt.data.opening import open_data
from nanogpt.data.stream import Stream, make_stream
from nanogpt.describe import describe, resolve
from nanogpt.hardware import torch_device
from nanogpt.model import GPT, build_model
from nanogpt.model.trunks import TRUNKS
from nanogpt.optim import build_optimizer, clip_gradients
from nanogpt.routing import Balancer
from parametrization import MODES

Axis = Literal["width", "depth"]
KEYS = {"width": "n_embd", "depth": "n_layer"}
KINDS = ("embedding", "attention branch", "mlp branch", "final residual", "logits")
PROBE_STEP = 2**31  # the batch that activations are measured on, far beyond those that are trained on
MOST_PROBED = 4  # sequences in it


@dataclass(frozen=True)
class Sweep:
    """What is trained: every mode at every size of one axis, `seeds` times, for `steps` steps of `sequences`.

    The learning rates are the check's own, not the config's: a peak that training reaches by a warm-up would, used
    from the first step on, saturate the small models and tilt every slope. `adamw_learning_rate` is that of what Muon
    does not train.
    """

    axis: Axis
    sizes: tuple[int, ...]
    modes: tuple[str, ...] = tuple(MODES)
    steps: int = 10
    seeds: int = 3
    sequences: int = 8
    learning_rate: float = 1e-3
    adamw_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        where = f"coord-check: {self.axis}s"
        if len(set(self.sizes)) < 2 or min(self.sizes) < 1:
            raise UserError(f"{where}: {', '.join(map(str, self.sizes))}: a slope needs two different positive sizes")
        for mode in self.modes:
            if mode not in MODES:
                raise UserError(f"coord-check: modes: no such mode '{mode}'{did_you_mean(mode, MODES)}")
        for name in ("steps", "seeds", "sequences"):
            if getattr(self, name) < 1:
                raise UserError(f"coord-check: {name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "adamw_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"coord-check: {name}: expected a positive number, got {getattr(self, name)}")


@dataclass(frozen=True)
class Reading:
    """One line of coord_check.csv. `rms` is the size of an activation, `change` that of its move since step 0."""

    axis: Axis
    mode: str
    size: int
    seed: int
    step: int
    kind: str
    rms: float
    change: float
    train_loss: float | None  # of the step about to be taken, on its training batch; None after the last


def sized(config: Config, sweep: Sweep, mode: str, size: int) -> Config:
    """`config` at one size and mode: head size, query groups and the proportions of the FFN stay as they are.

    The base shape is the config's where it names one, else the smallest size of the sweep. The learning rate is
    constant, the precision float32 and dropout off, so that nothing but the size differs.
    """
    depth = config.parametrization.base_n_layer or base_depth(config, sweep)
    base = {"base_n_embd": base_width(config, sweep.axis, sweep.sizes), "base_n_layer": depth}
    shape = _at_width(config, size) if sweep.axis == "width" else _at_depth(config, size)
    tree = config.model_dump(mode="json")
    tree["model"] |= {"dropout": 0.0, **shape}
    tree["parametrization"] |= {"mode": mode, **base}
    tree["optimizer"]["learning_rate"] = sweep.learning_rate
    if config.optimizer.kind == "muon":
        tree["optimizer"]["adamw_learning_rate"] = sweep.adamw_learning_rate
    tree["schedule"] = {"kind": "constant"}
    tree["train"] |= {"precision": "fp32", "batch_size": sweep.sequences}
    tree["runtime"] |= {"micro_batch_size": None}
    return Config.model_validate(tree)


def base_width(config: Config, axis: Axis, sizes: Sequence[int]) -> int:
    """The width that a sweep's multipliers are measured from."""
    return config.parametrization.base_n_embd or (min(sizes) if axis == "width" else config.model.n_embd)


def _at_width(config: Config, size: int) -> dict[str, Any]:
    model = config.model
    if size % model.head_size:
        raise UserError(
            f"coord-check: widths: {size} is not a multiple of the head size, {model.head_size}, which stays the same; "
            "a larger --n_head makes heads smaller"
        )
    heads = size // model.head_size
    group = model.n_head // model.kv_heads
    if heads % group:
        raise UserError(f"coord-check: widths: {size} has {heads} heads, which {group} queries per key do not divide")
    shape: dict[str, Any] = {"n_embd": size, "n_head": heads}
    if model.n_kv_head is not None:
        shape["n_kv_head"] = heads // group
    if model.ffn.hidden is not None:
        shape["ffn"] = model.ffn.model_dump() | {"hidden": max(1, round(model.ffn.hidden * size / model.n_embd))}
    return shape


def _at_depth(config: Config, size: int) -> dict[str, Any]:
    """n_layer, or loops: what makes a trunk of this kind deep."""
    trunk = config.model.trunk
    if isinstance(trunk, Recurrent):
        return {"trunk": trunk.model_dump(mode="json") | {"depth": {"kind": "fixed", "loops": size}}}
    if config.model.n_layer is None:
        raise UserError(f"coord-check: depths: the trunk {trunk.kind} draws its depth; check it over widths")
    if isinstance(trunk, Shared) and trunk.groups > size:
        raise UserError(f"coord-check: depths: {size} is less than model.trunk.groups={trunk.groups}")
    return {"n_layer": size}


def base_depth(config: Config, sweep: Sweep) -> int:
    """Applications of blocks at the smallest depth of the sweep, or at the config's own where the width varies."""
    model = config.model
    if sweep.axis == "depth":
        tree = model.model_dump(mode="json") | _at_depth(config, min(sweep.sizes))
        model = type(model).model_validate(tree)
    return round(TRUNKS[model.trunk.kind].depth_of(model))


def run_sweep(
    config: Config,
    sweeps: Sequence[Sweep],
    say: Callable[[str], None] = lambda text: None,
    before: Callable[[], None] = lambda: None,
) -> list[Reading]:
    """Train every mode, size and seed of the sweeps and read the activations before and after each step.

    `before` is called once all is known to be right. Raises UserError for a size that the config can not take, before
    anything is trained.
    """
    config = resolve(config)
    models = [(sweep, mode, size) for sweep in sweeps for mode in sweep.modes for size in sweep.sizes]
    configs = [sized(config, *model) for model in models]
    corpus = open_data(config.data, config.runtime)
    before()
    readings: list[Reading] = []
    for number, ((sweep, mode, size), one) in enumerate(zip(models, configs, strict=True), start=1):
        say(f"{number}/{len(models)}: {mode}, {KEYS[sweep.axis]}={size}")
        stream = make_stream(corpus, sweep.sequences, config.model.block_size, config.seed, config.data.sampling)
        for seed in range(config.seed, config.seed + sweep.seeds):
            seeded = one.model_copy(update={"seed": seed})
            readings += [
                Reading(sweep.axis, mode, size, seed, step, kind, *sizes, loss)
                for step, (loss, kinds) in enumerate(measure(seeded, stream, sweep.steps))
                for kind, sizes in kinds.items()
            ]
    return readings


def measure(
    config: Config, stream: Stream, steps: int
) -> Iterator[tuple[float | None, dict[str, tuple[float, float]]]]:
    """Train for `steps` steps; before each, and after the last, the training loss and (rms, change) by kind.

    Activations are those of one batch that is never trained on, so that a change is the model's, not the batch's.
    """
    device = torch_device(config.runtime.device, config.runtime.threads)
    torch.manual_seed(config.seed)
    model = build_model(config, device)
    optimizer = build_optimizer(model, config, device, steps=describe(config).steps)
    probe_BT = torch.from_numpy(stream.batch(PROBE_STEP).x_BT[:MOST_PROBED]).to(device)
    balancer = Balancer(model)
    first = activations(model, probe_BT)
    for step in range(steps + 1):
        now = activations(model, probe_BT)
        kinds = {kind: (_rms(now[kind]), _rms(_differences(now[kind], first[kind]))) for kind in KINDS}
        if step == steps:
            yield None, kinds
            return
        batch = stream.batch(step)
        losses = model.losses(torch.from_numpy(batch.x_BT).to(device), torch.from_numpy(batch.y_BT).to(device))
        yield losses.cross_entropy.item(), kinds
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        clip_gradients(model.parameters(), config.optimizer.grad_clip)
        optimizer.step()
        balancer.begin()
        balancer.step.add(losses.routed)
        balancer.finish()


@torch.no_grad()
def activations(model: GPT, idx_BT: Tensor) -> dict[str, list[Tensor]]:
    """The tensors of each kind in one forward pass, in order of application.

    A branch is taken as it leaves its last matrix, before the residual multiplier; the logits as the loss sees them.
    """
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def keep(kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: found[kind].append(output)

    with contextlib.ExitStack() as hooks:
        trunk = model.trunk
        handles = [
            trunk.register_forward_pre_hook(lambda module, inputs: found["embedding"].append(inputs[0])),
            trunk.register_forward_hook(keep("final residual")),
            *(block.attention.register_forward_hook(keep("attention branch")) for block in trunk.unique()),
            *(block.ffn.register_forward_hook(keep("mlp branch")) for block in trunk.unique()),
        ]
        for handle in handles:
            hooks.callback(handle.remove)
        found["logits"].append(model(idx_BT))
    return found


def _differences(now: Iterable[Tensor], first: Iterable[Tensor]) -> list[Tensor]:
    return [left - right for left, right in zip(now, first, strict=True)]


def _rms(tensors: list[Tensor]) -> float:
    """Root mean square over all entries of all applications."""
    return torch.stack([tensor.float().square().mean() for tensor in tensors]).mean().sqrt().item()
