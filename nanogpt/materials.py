"""What an attempt needs before it may touch its folder: the corpus, its batches, and the state to go on from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt import checkpoint
from nanogpt.branch import load_trunk, offered_trunk
from nanogpt.config import UserError
from nanogpt.data.opening import open_data
from nanogpt.data.stream import EvalSet, Stream, make_eval_set, make_stream
from nanogpt.describe import Description
from nanogpt.weights.initial import initial_state


@dataclass(frozen=True)
class Materials:
    """Everything that can be missing or damaged, found whole. `loaded` is None for a start from the beginning.

    `initial` holds the weights to begin with, by name; empty for a start from scratch, and once they are taken.
    """

    stream: Stream
    eval_set: EvalSet
    loaded: checkpoint.Loaded | None
    initial: dict[str, Any] = field(default_factory=dict)


def gather(description: Description, folder: Path, trunk: Path | None = None) -> Materials:
    """Open the corpus and load the checkpoint that the run in `folder` goes on from. Writes nothing there.

    `trunk` is a run whose WSD trunk a worker offers for the start; what cannot be taken is left.

    Raises UserError for a corpus that does not fit, a resume without a checkpoint, checkpoints that are all damaged
    or of another run, a branch that cannot be taken, and weights to start from that are not those of the config.
    """
    config = description.config
    corpus = open_data(config.data, config.runtime)
    stream = make_stream(corpus, config.train.batch_size, config.model.block_size, config.seed, config.data.sampling)
    eval_set = make_eval_set(corpus, config.model.block_size, config.train.eval_tokens)
    loaded = checkpoint.load_latest(folder)
    if loaded is not None and loaded.state["id"] != description.id:
        raise UserError(f"{loaded.file.path}: belongs to run {loaded.state['id']}, not to {description.id}")
    if loaded is None and config.runtime.resume == "required":
        raise UserError(f"{folder}: nothing to resume: no checkpoint there")
    loaded = loaded or load_trunk(config, description.steps) or offered_trunk(config, description.steps, trunk)
    initial: dict[str, Any] = {}
    if loaded is None and config.init_from != "scratch":
        initial = initial_state(config)
    return Materials(stream, eval_set, loaded, initial)
