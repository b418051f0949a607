"""nanoGPT's command-line flags, with their old meaning, in terms of this project's keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanogpt.config.errors import UserError, did_you_mean

Assignments = dict[str, Any]


@dataclass(frozen=True)
class Alias:
    """One old flag: what it meant, and the assignments that say the same here.

    `needs` names the settled keys whose values the translation depends on; it then runs after all layers are merged.
    """

    meaning: str
    assign: Callable[..., Assignments]
    needs: tuple[str, ...] = ()


def _switch(key: str, on: Any, off: Any) -> Callable[[Any], Assignments]:
    def assign(value: Any) -> Assignments:
        if not isinstance(value, bool):
            raise UserError(f"expected True or False, got {value!r}")
        return {key: on if value else off}

    return assign


def _choice(key: str, table: dict[str, Any]) -> Callable[[Any], Assignments]:
    def assign(value: Any) -> Assignments:
        if not isinstance(value, str) or value not in table:
            raise UserError(f"no such value {value!r}{did_you_mean(value, table)}")
        return {key: table[value]}

    return assign


def _dataset(value: Any) -> Assignments:
    """A corpus of ours by name; any other name is the folder data/NAME with nanoGPT's files."""
    if not isinstance(value, str) or not value:
        raise UserError(f"expected the name of a corpus or of a folder under data/, got {value!r}")
    if value in ("zipf_mixture", "shakespeare_char"):
        return {"data.corpus": {"kind": value}}
    return {"data.corpus": {"kind": "bin", "path": value}}


def _count(value: Any) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < 1:
        raise UserError(f"expected a whole number of at least 1, got {value!r}")
    return int(value)


def _accumulate(value: Any, batch_size: int) -> Assignments:
    """nanoGPT's batch_size was one micro-batch; the batch of a step is that times the accumulation steps."""
    return {"train.batch_size": batch_size * _count(value), "runtime.micro_batch_size": batch_size}


def _eval_iters(value: Any, micro_batch_size: int, block_size: int) -> Assignments:
    """nanoGPT averaged eval_iters random batches; here the same number of tokens, fixed once."""
    return {"train.eval_tokens": _count(value) * micro_batch_size * block_size}


def _init_from(value: Any) -> Assignments:
    return {"runtime.resume": "required"} if value == "resume" else {"init_from": value}


_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_ACCUMULATION = Alias("micro-batches per optimizer step", _accumulate, needs=("train.batch_size",))

ALIASES: dict[str, Alias] = {
    "use_rope": Alias("rotary positions instead of learned ones", _switch("model.position", "rope", "learned")),
    "use_rmsnorm": Alias("RMSNorm instead of LayerNorm", _switch("model.norm", "rmsnorm", "layernorm")),
    "use_swiglu": Alias("SwiGLU instead of nanoGPT's GELU", _switch("model.ffn", "swiglu", "gelu_exact")),
    "dataset": Alias("corpus, or a folder under data/", _dataset),
    "dtype": Alias("precision of the forward pass", _choice("train.precision", _PRECISIONS)),
    "decay_lr": Alias("cosine schedule, or a constant rate", _switch("schedule", {"kind": "cosine"}, "constant")),
    "lr_decay_iters": Alias("end of the decay", lambda value: {"schedule.decay_iters": value}),
    "always_save_checkpoint": Alias(
        "keep the last checkpoint instead of the best", _switch("runtime.checkpoint.policy", "last", "best")
    ),
    "init_from": Alias("scratch, or resume what lies in out_dir", _init_from),
    "gradient_accumulation_steps": _ACCUMULATION,
    "grad_accum_steps": _ACCUMULATION,
    "eval_iters": Alias("batches per evaluation", _eval_iters, needs=("runtime.micro_batch_size", "model.block_size")),
}
