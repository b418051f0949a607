"""Validation loss on a fixed set of windows, with its standard error."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nanogpt.data.stream import UNSCORED, EvalSet
from nanogpt.model import GPT
from nanogpt.routing import RoutingSums
from nanogpt.team import ALONE, Team

TOKENS_AT_ONCE = 2**14
LOGITS_AT_ONCE = 2**25
DOUBLE = {"mps": torch.float32}  # which has no float64

Autocast = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats per scored token; `stderr` takes each window as one draw, None where there is one.

    Of a mixture the mean is that of its parts by their shares, and `parts` has the loss of each.
    """

    loss: float
    stderr: float | None
    routing: list[dict[str, Any]] | None = None  # by application, over all windows; None where nothing is routed
    parts: dict[str, float] | None = None


@torch.no_grad()
def evaluate(model: GPT, eval_set: EvalSet, device: torch.device, autocast: Autocast, team: Team = ALONE) -> Evaluation:
    """Score every window once, in the mode of inference, and put the model back into the mode it was in.

    The ranks of a team take turns, and all get the same answer.
    """
    x_WT, y_WT = (torch.from_numpy(part).to(device) for part in (eval_set.batch.x_BT, eval_set.batch.y_BT))
    vocab_size = model.config.vocab_size
    assert isinstance(vocab_size, int)
    tokens = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size)
    rows = max(1, min(tokens // x_WT.shape[1], -(-len(x_WT) // team.size)))
    was_training = model.training
    model.eval()
    sum_W = torch.zeros(len(x_WT), dtype=DOUBLE.get(device.type, torch.float64), device=device)
    routing = RoutingSums()
    for start in range(0, len(x_WT), rows * team.size):
        # A rank for which nothing is left in the last round goes through the motions: shards are gathered by all.
        mine = start + team.rank * rows
        part = slice(mine, mine + rows) if mine < len(x_WT) else slice(0, 1)
        with autocast():
            scores = model.scores(x_WT[part], y_WT[part])
        routing.add(scores.routed, counted=mine < len(x_WT))
        if mine < len(x_WT):
            sum_W[part] = scores.loss_sum_B.to(sum_W.dtype)
    routing.reduce(team.add)
    model.train(was_training)
    sum_W, count_W = team.add(sum_W), (y_WT != UNSCORED).sum(dim=1).to(sum_W.dtype)
    if eval_set.parts:
        return _over_parts(sum_W, count_W, eval_set, routing.read(dead=True))
    return Evaluation(*_mean(sum_W, count_W), routing.read(dead=True))


def _mean(sum_W: torch.Tensor, count_W: torch.Tensor) -> tuple[float, float | None]:
    """The mean over tokens, and its standard error over windows."""
    mean_W = sum_W / count_W
    stderr = float(mean_W.std(correction=1)) / len(mean_W) ** 0.5 if len(mean_W) > 1 else None
    return float(sum_W.sum() / count_W.sum()), stderr


def _over_parts(
    sum_W: torch.Tensor, count_W: torch.Tensor, eval_set: EvalSet, routing: list[dict[str, Any]] | None
) -> Evaluation:
    """The loss on a mixture: what its parts' losses come to by their shares. Their errors are independent."""
    sizes = [part.windows for part in eval_set.parts]
    found = [_mean(*rows) for rows in zip(sum_W.split(sizes), count_W.split(sizes), strict=True)]
    shares = [part.share for part in eval_set.parts]
    loss = sum(share * mean for share, (mean, _) in zip(shares, found, strict=True))
    errors = [share * stderr for share, (_, stderr) in zip(shares, found, strict=True) if stderr is not None]
    stderr = math.hypot(*errors) if len(errors) == len(found) else None
    parts = {part.name: mean for part, (mean, _) in zip(eval_set.parts, found, strict=True)}
    return Evaluation(loss, stderr, routing, parts)
