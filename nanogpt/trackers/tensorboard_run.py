"""A run as TensorBoard's event files, in `tensorboard/` of its folder: `tensorboard --logdir results/STUDY`.

Each attempt writes one file with the whole curve, which tells TensorBoard to forget what it has read, and removes the
file of the attempt before: whatever a kill tore off, no point stands there twice and none is missing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt.trackers.tracker import LOSSES, Metrics, TrackedRun, Tracker

AXES = ("tokens", "flops")
LARGEST_AXIS = 2**63 - 1  # TensorBoard's step is an int64


class TensorBoardRun(Tracker):
    """Scalars over steps; the losses over tokens and FLOPs, too, as `by_tokens/val_loss` and `by_flops/val_loss`."""

    def start(self, run: TrackedRun) -> int:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.folder / "tensorboard"
        self._earlier = list(folder.glob("events.out.tfevents.*"))
        self._config = {**run.facts, **_leaves(run.config)}
        self._writer = SummaryWriter(str(folder), purge_step=0, filename_suffix=f".{run.attempt}", max_queue=1000)
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=1)}\n```")
        self._writer.flush()
        return 0

    def log(self, lines: Sequence[Metrics]) -> None:
        for line in lines:
            step = int(line["step"])
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step)
            for axis in AXES:
                if axis in line and line[axis] <= LARGEST_AXIS:
                    for name in LOSSES:
                        if name in line:
                            self._writer.add_scalar(f"by_{axis}/{name}", line[name], int(line[axis]))
        self._writer.flush()
        self._forget_earlier()

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        numbers = {f"final/{key}": value for key, value in summary.items() if key != "status"}
        file = self._writer.file_writer
        if file is not None:
            for part in hparams({**self._config, "status": status}, numbers):
                file.add_summary(part)
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, int(summary.get("steps", 0)))
        self._writer.close()
        self._forget_earlier()

    def _forget_earlier(self) -> None:
        """Only once what replaces them is on the disk."""
        for path in self._earlier:
            Path(path).unlink(missing_ok=True)
        self._earlier = []


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's settings by their dotted names, as far as TensorBoard's table of hyperparameters takes them."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
    return found
