"""The training loop: one model from one resolved config, resumable at any step to the last bit."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nanogpt.config import Config
from nanogpt.data.prefetch import Prefetcher
from nanogpt.data.stream import Batch
from nanogpt.describe import Description
from nanogpt.evaluate import Autocast, evaluate
from nanogpt.history import HistoryWriter, history_until
from nanogpt.materials import Materials
from nanogpt.model import build_model
from nanogpt.noisescale import NoiseMeter
from nanogpt.optim import build_optimizer, clip_gradients, lr_factor, set_learning_rate
from nanogpt.probes import Probes
from nanogpt.progress import Clock, Progress, pack, unpack
from nanogpt.record import attempt_folder
from nanogpt.replica import Replica, spread
from nanogpt.routing import Balancer, summary
from nanogpt.saving import Saver
from nanogpt.stop import StopRequest, check_fence
from nanogpt.team import ALONE, Team

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Result:
    """How a training loop ended."""

    status: Literal["completed", "diverged", "interrupted"]
    progress: Progress
    val_entropy: float | None
    val_bytes_per_token: float | None
    resumed_from: str | None
    branch: dict[str, Any] | None = None  # the other run's checkpoint that this one started from, whatever came since
    diverged_at_step: int | None = None


def autocast_for(precision: str, device: torch.device) -> Autocast:
    """The context of a forward pass. bf16 and fp16 keep float32 weights and cast in the matmuls."""
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=DTYPES[precision])


def train(
    description: Description,
    materials: Materials,
    device: torch.device,
    folder: Path,
    attempt: int,
    stop: StopRequest,
    fence: Path | None = None,
    say: Say = lambda line: None,
    branch_points: Collection[int] = (),
    team: Team = ALONE,
) -> Result:
    """Train a resolved config to its horizon, going on from what `materials` hold.

    Checkpoints at `branch_points` are kept for runs that share this one's trunk.

    Writes only into the attempt's own folder, and only the leader of a team writes. `say` gets every line of the
    history. Raises SupersededError when `fence` appears.
    """
    config, horizon = description.config, description.steps
    settings, peak_lr = config.runtime, config.optimizer.learning_rate
    stream, eval_set, loaded = materials.stream, materials.eval_set, materials.loaded
    autocast = autocast_for(config.train.precision, device)

    torch.manual_seed(config.seed)
    model = build_model(config, device)
    if loaded is not None:
        model.load_state_dict(loaded.state["model"])
    elif materials.initial:
        model.load_state_dict(materials.initial)
        materials.initial.clear()  # the model has a copy
    replica = spread(model, team, settings.data_parallel, settings.compile)
    optimizer = build_optimizer(model, config, device, steps=horizon)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    parameters = list(model.parameters())

    progress, resumed_from, earlier, branch = Progress(), None, [], None
    if loaded is not None:
        _fix_threads(config, loaded.state, team)
        progress = unpack(loaded.state, optimizer, scaler, replica)
        resumed_from = str(loaded.file.path)
        if progress.step and not progress.applications:  # from before these were summed: every step cost the same
            progress.flops = description.flops_per_token * progress.tokens
            progress.applications = model.step_cost(0).applications * progress.step
        branch = loaded.state.get("branch")
        if loaded.state["id"] != description.id:
            branch = {"checkpoint": resumed_from, "step": progress.step, "wall_seconds": progress.wall_seconds}
        earlier = history_until(loaded.file.path.parent / "history.jsonl", progress.step)
    clock = Clock(progress)
    saver = Saver(
        folder,
        attempt,
        settings.checkpoint,
        fence,
        progress,
        lambda: {
            **pack(description.id, clock, model, optimizer, scaler, replica, team.size),
            "config": config.model_dump(mode="json"),
            "branch": branch,
        },
        team,
        branch_points,
    )
    probes = Probes(model)
    balancer = Balancer(model, team.add)
    meter = NoiseMeter(parameters, config.train.batch_size, config.micro_batch_size, config.model.block_size)

    def result(status: Literal["completed", "diverged", "interrupted"]) -> Result:
        clock.update()
        failed_at = progress.step if status == "diverged" else None
        return Result(status, progress, eval_set.entropy, eval_set.bytes_per_token, resumed_from, branch, failed_at)

    lines = attempt_folder(folder, attempt) / "history.jsonl"
    prefetcher = Prefetcher(stream.batch, progress.step, horizon)
    with HistoryWriter(lines if team.leads else Path(os.devnull), earlier) as history, prefetcher as batches:
        line_tokens, line_seconds = progress.tokens, progress.step_seconds
        while progress.step < horizon:
            if team.any(bool(stop)):
                saver.save()
                return result("interrupted")

            started = time.perf_counter()
            learning_rate = peak_lr * lr_factor(config.schedule, progress.step, horizon, peak_lr)
            set_learning_rate(optimizer, learning_rate)
            probes.enabled = _falls_on(settings.probe_interval, progress.step + 1)
            model.at_step(progress.step)
            batch = batches.batch(progress.step)
            accumulate = functools.partial(
                accumulate_gradients,
                replica,
                team.rows_of(batch),
                before_part=_draw_masks(config, progress.step, team),
                scaler=scaler,
                autocast=autocast,
                device=device,
                balancer=balancer,
            )
            noise = None
            if _falls_on(settings.noise_scale_interval, progress.step + 1):
                loss, noise = meter.measure(accumulate, scaler.get_scale())
            else:
                loss = accumulate(config.micro_batch_size)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(parameters, config.optimizer.grad_clip)
            statistics = probes.collect()
            scaler.step(optimizer)
            statistics |= probes.collect_updates()
            scaler.update()
            balancer.finish()
            optimizer.zero_grad(set_to_none=True)
            loss_value, due = team.means([loss.item(), saver.is_due()])
            cost = model.step_cost(progress.step)
            progress.step += 1
            progress.tokens += batch.x_BT.size
            progress.flops += cost.flops_per_token * batch.x_BT.size
            progress.applications += cost.applications
            progress.step_seconds += time.perf_counter() - started
            if not math.isfinite(loss_value):
                history.write({"step": progress.step, "tokens": progress.tokens, "train_loss": loss_value})
                return result("diverged")
            progress.add_loss(loss_value)

            last, best = progress.step == horizon, False
            evaluating = last or _falls_on(config.train.eval_interval, progress.step)
            if evaluating or statistics or noise or progress.step % settings.log_interval == 0:
                line: dict[str, Any] = {
                    "step": progress.step,
                    "tokens": progress.tokens,
                    "flops": float(progress.flops),
                    "train_loss": progress.take_mean_loss(),
                    "learning_rate": learning_rate,
                    "grad_norm": float(grad_norm),
                    "tokens_per_second": (progress.tokens - line_tokens) / (progress.step_seconds - line_seconds),
                    "probes": statistics or None,
                    "routing": balancer.step.read(),
                    **(noise.as_line() if noise is not None else {}),
                }
                line_tokens, line_seconds = progress.tokens, progress.step_seconds
                if evaluating:
                    evaluation = evaluate(model, eval_set, device, autocast, team)
                    line["val_loss"] = evaluation.loss
                    line["val_losses"] = evaluation.parts
                    line["val_routing"] = evaluation.routing
                    progress.routing = summary(line["routing"], evaluation.routing)
                    best = progress.note_evaluation(evaluation.loss, evaluation.stderr, evaluation.parts)
                history.write(line)
                if team.leads:
                    say(line)
                if evaluating and not math.isfinite(evaluation.loss):
                    return result("diverged")
            saver.after_step(last, best, due > 0)
        check_fence(fence)
        return result("completed")


def accumulate_gradients(
    replica: Replica,
    batch: Batch,
    micro_batch_size: int,
    after_part: Callable[[], None] | None = None,
    *,
    before_part: Callable[[int], None] | None = None,
    scaler: torch.amp.GradScaler,
    autocast: Autocast,
    device: torch.device,
    balancer: Balancer | None = None,
) -> torch.Tensor:
    """Gradients of the batch's mean loss, one micro-batch at a time; returns the cross-entropy, a detached scalar.

    `batch` is this rank's share; the gradients are those of the whole, the loss is the share's.

    Auxiliary losses are differentiated and not reported; `balancer` collects what the routers did.

    `before_part` is called with the number of each micro-batch of the share, `after_part` when its gradients have been
    added to the others.
    Every sequence has the same number of scored targets, so the mean of the micro-batches' means is the batch's mean.
    """
    x_BT, y_BT = torch.from_numpy(batch.x_BT).to(device), torch.from_numpy(batch.y_BT).to(device)
    parts = len(x_BT) // micro_batch_size
    total = torch.zeros((), device=device)
    if balancer is not None:
        balancer.begin()
    cut = zip(x_BT.split(micro_batch_size), y_BT.split(micro_batch_size), strict=True)
    for part, (x_MT, y_MT) in enumerate(cut):
        if before_part is not None:
            before_part(part)
        with replica.synchronize(part == parts - 1):
            with autocast():
                losses = replica.forward(x_MT, y_MT)
                loss = losses.total / parts
            scaler.scale(loss).backward()
        total += losses.cross_entropy.detach() / parts
        if balancer is not None:
            balancer.step.add(losses.routed)
        if after_part is not None:
            after_part()
    return total


def _draw_masks(config: Config, step: int, team: Team) -> Callable[[int], None] | None:
    """Seeds dropout's masks for each micro-batch of a step, so that they are the same whichever rank draws them."""
    if config.model.dropout == 0:
        return None
    first = team.rank * (config.train.batch_size // config.micro_batch_size // team.size)

    def draw(part: int) -> None:
        seeds = np.random.SeedSequence([config.seed, step, first + part]).generate_state(1, np.uint64)
        torch.manual_seed(int(seeds[0] >> 1))

    return draw


def _falls_on(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0


def _fix_threads(config: Config, state: dict[str, Any], team: Team) -> None:
    """Keep the first attempt's thread count: another one sums in another order and changes the last bits.

    Another number of processes does so anyway, and shares the cores in another way.
    """
    if config.runtime.threads is None and state.get("nproc", 1) == team.size:
        torch.set_num_threads(state["threads"])
