"""How far a run has come: the numbers that a checkpoint carries beside the tensors, and the whole state packed."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from nanogpt.replica import Replica


@dataclass
class Progress:
    """Counters of a run over all its attempts. Losses in nats per token, times in seconds."""

    step: int = 0
    tokens: int = 0
    flops: int = 0  # training FLOPs, of each step what was drawn for it
    applications: int = 0  # of blocks, summed over the steps
    loss_sum: float = 0.0  # of the steps since the last line of the history
    loss_count: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    val_loss_stderr: float | None = None
    val_losses: dict[str, float] | None = None  # of a mixture's parts
    best_val_loss: float | None = None
    best_step: int | None = None
    routing: dict[str, Any] | None = None  # of the last evaluation, see nanogpt/routing.py:summary
    step_seconds: float = 0.0  # inside optimizer steps, so without evaluation and checkpoints
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add_loss(self, loss: float) -> None:
        self.loss_sum += loss
        self.loss_count += 1

    def take_mean_loss(self) -> float | None:
        """The mean loss since this was last asked, which starts a new mean."""
        if self.loss_count:
            self.train_loss = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return self.train_loss

    def note_evaluation(self, loss: float, stderr: float | None, parts: dict[str, float] | None = None) -> bool:
        """Remember an evaluation; True when it is the lowest so far."""
        self.val_loss, self.val_loss_stderr, self.val_losses = loss, stderr, parts
        if math.isfinite(loss) and (self.best_val_loss is None or loss < self.best_val_loss):
            self.best_val_loss, self.best_step = loss, self.step
            return True
        return False


@dataclass
class Clock:
    """Adds this attempt's wall and CPU time to what earlier attempts used."""

    progress: Progress
    wall_start: float = field(default_factory=time.perf_counter)
    cpu_start: float = field(default_factory=time.process_time)
    wall_before: float = field(init=False)
    cpu_before: float = field(init=False)

    def __post_init__(self) -> None:
        self.wall_before, self.cpu_before = self.progress.wall_seconds, self.progress.cpu_seconds

    def update(self) -> None:
        self.progress.wall_seconds = self.wall_before + time.perf_counter() - self.wall_start
        self.progress.cpu_seconds = self.cpu_before + time.process_time() - self.cpu_start


def pack(
    run_id: str,
    clock: Clock,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    replica: Replica,
    nproc: int = 1,
) -> dict[str, Any]:
    """Everything the next step depends on, in whole tensors. Data and schedules follow from the step."""
    clock.update()
    return {
        "id": run_id,
        "threads": torch.get_num_threads(),
        "nproc": nproc,
        "progress": asdict(clock.progress),
        "model": replica.whole(model.state_dict()),
        "optimizer": replica.whole(optimizer.state_dict()),
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def unpack(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, replica: Replica
) -> Progress:
    """Put back a packed state, but for the weights, and return its progress."""
    replica.load_optimizer(optimizer, state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**state["progress"])
