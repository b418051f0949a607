"""What a single run tells a person while it trains and when it ends."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from nanogpt.checkpoint import Loaded
from nanogpt.describe import Description
from nanogpt.hardware import choice_of
from nanogpt.record import Record
from nanogpt.weights.resolving import starts_from

QUIET_SECONDS = 1.0  # lines without an evaluation come at most this often


class Narrator:
    """Prints a run's lines: every evaluation, and in between at most one a second."""

    def __init__(self, description: Description, folder: Path, speaks: bool = True) -> None:
        self._steps, self._folder, self._description = description.steps, folder, description
        self._last = self._started = time.monotonic()
        self._first_step: int | None = None
        self._has_reader = speaks  # of several ranks one speaks

    def _print(self, text: str) -> None:
        """A reader that goes away (`... | head`) ends the talking, not the training."""
        if not self._has_reader:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self._has_reader = False
            # The interpreter flushes stdout once more when it ends; that must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError:
            """On a full disk a log is no reason to end: the next checkpoint may find room again."""

    def begin(self) -> None:
        d, runtime = self._description, self._description.config.runtime
        self._print(
            f"{self._folder}: {d.n_params:,} parameters, {d.steps:,} steps, {d.tokens:,} tokens, "
            f"{d.flops:.3g} FLOPs, {d.config.train.precision} on {runtime.device}"
            + (f", {runtime.nproc} processes ({runtime.data_parallel})" if runtime.nproc > 1 else "")
        )
        self._print(choice_of(d.config))

    def resumed(self, loaded: Loaded | None, attempt: int) -> None:
        """Say where a later attempt goes on from, and what had to be passed over."""
        for damage in loaded.damaged if loaded is not None else ():
            self._print(f"{damage}; using the one before it")
        if loaded is not None:
            self._print(f"going on from step {loaded.file.step:,} of {loaded.file.path}")
        elif attempt > 1:
            self._print("starting from step 0: no earlier attempt left a checkpoint")
        if loaded is None:
            for weights in starts_from(self._description.config).values():
                self._print(f"starting from the weights of {weights}")

    def line(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = line["step"]
            self._started = now
        if "val_loss" not in line and now - self._last < QUIET_SECONDS:
            return
        self._last = now
        validation = f"  val {line['val_loss']:.4f}" if "val_loss" in line else ""
        self._print(
            f"step {line['step']:>6,}/{self._steps:,}  loss {line['train_loss']:.4f}{validation}  "
            f"lr {line['learning_rate']:.2e}  {line['tokens_per_second']:,.0f} tok/s{self._left(line['step'], now)}"
        )

    def _left(self, step: int, now: float) -> str:
        assert self._first_step is not None
        done = step - self._first_step
        if not done or step == self._steps:
            return ""
        return f"  {(self._steps - step) * (now - self._started) / done:,.0f} s left"

    def interrupted(self, record: Record, reason: str | None) -> None:
        self._print(f"stopped at step {record.steps:,} ({reason}); go on with: python -m nanogpt train {self._folder}")


def summary(record: Record, folder: Path) -> str:
    """The closing lines of a run."""
    lines = []
    if record.status == "diverged":
        lines.append(f"diverged at step {record.diverged_at_step:,}: the loss is not finite; recorded as a result")
    elif record.val_loss is not None:
        excess = f", {record.val_excess_loss:.4f} above the source's entropy" if record.val_excess_loss else ""
        error = f" ± {record.val_loss_stderr:.4f}" if record.val_loss_stderr is not None else ""
        lines.append(f"validation loss {record.val_loss:.4f}{error}{excess}")
        lines.append(f"best {record.best_val_loss:.4f} at step {record.best_step:,}")
    speed = record.tokens_per_second or 0.0
    utilisation = f" (MFU {record.mfu:.1%})" if record.mfu is not None else ""  # CPUs and unknown GPUs have none
    spent = record.flops / record.tokens if record.tokens else 0.0
    lines.append(
        f"{record.tokens:,} tokens, {record.flops:.3g} FLOPs, {record.wall_seconds:.1f} s, "
        f"{speed:,.0f} tok/s, {speed * spent:.3g} FLOP/s{utilisation}"
    )
    lines.append(f"record: {folder / 'metrics.json'}   picture: {folder / 'loss.png'}")
    return "\n".join(lines)
