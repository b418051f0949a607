"""Validation loss of a trained run at evaluation depths of one's choice, `python -m nanogpt eval RUN --depths 1,2`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogpt.config import UserError
from nanogpt.data.opening import open_data
from nanogpt.data.stream import make_eval_set
from nanogpt.evaluate import Evaluation, evaluate
from nanogpt.model import GPT
from nanogpt.model.layers import TRAINING
from nanogpt.model.trunks import Application
from nanogpt.train import autocast_for
from nanogpt.trained import load_trained

HEADINGS = ("depth", "applications", "forward FLOPs per token", "val loss", "stderr")


@dataclass(frozen=True)
class DepthLoss:
    """One row. `depth` is as the person wrote it, None for the config's own; FLOPs are of a forward pass per token."""

    depth: str | None
    applications: int
    forward_flops: int
    evaluation: Evaluation


def losses_by_depth(run: Path | str, depths: Sequence[str] = (), device: str | None = None) -> Iterator[DepthLoss]:
    """The loss at the config's own evaluation depth, then at each of `depths`, on the run's own validation windows.

    Raises UserError, before anything is evaluated, for a depth that the trunk cannot take.
    """
    trained = load_trained(run, device)
    model, config = trained.model, trained.config
    if trained.weights is not None:
        raise UserError(f"eval: {run}: weights without a run have no corpus of their own: name one to evaluate on")
    for depth in depths:
        _check_depth(model, depth)
    where = next(model.parameters()).device
    corpus = open_data(config.data, config.runtime)
    eval_set = make_eval_set(corpus, config.model.block_size, config.train.eval_tokens)
    autocast = autocast_for(str(config.train.precision), where)

    def row(depth: str | None) -> DepthLoss:
        model.trunk.evaluate_at(depth)
        return DepthLoss(depth, *_price(model), evaluate(model, eval_set, where, autocast))

    return map(row, (None, *depths))


def _check_depth(model: GPT, depth: str) -> None:
    try:
        model.trunk.parse_depth(depth)
    except UserError as error:
        raise UserError(f"eval: --depths: {error}") from None


def _price(model: GPT) -> tuple[int, int]:
    """Applications of blocks, and FLOPs per token of a forward pass: a third of training every application."""
    plan = model.trunk.plan(model.trunk.schedule())
    usage = Counter(Application(block) for block, _ in plan)
    return len(plan), round(sum(model.flops_of(usage, model.config.block_size).values()) / TRAINING)


def table_lines(rows: Iterator[DepthLoss]) -> Iterator[str]:
    """The table for people, line by line as the losses come in."""
    widths = [max(len(heading), 12) for heading in HEADINGS]
    yield "  ".join(heading.rjust(width) for heading, width in zip(HEADINGS, widths, strict=True))
    for row in rows:
        stderr = f"{row.evaluation.stderr:.4f}" if row.evaluation.stderr is not None else "-"
        loss, name = f"{row.evaluation.loss:.4f}", row.depth or "the config's"
        cells = (name, str(row.applications), f"{row.forward_flops:,}", loss, stderr)
        yield "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
