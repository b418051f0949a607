"""A model of ours as a plain stack of blocks with no multiplier left: what other programs' layouts can hold.

A parametrization's multipliers are constants, so each goes into a tensor beside it and the function stays the same:

| multiplier (parametrization/rules.py)     | goes into                                                            |
|-------------------------------------------|----------------------------------------------------------------------|
| input                                     | token and position embeddings                                        |
| q.k scale, against 1 / sqrt(head size)    | rows of q, weight and bias                                           |
| residual                                  | attention-out and ffn-out, weight and bias                           |
| output                                    | the head, which is then untied unless the input multiplier is equal  |

Applications of shared blocks become blocks of their own, with copies of the weights.
"""

import math
from typing import Any

import torch
from torch import Tensor

from nanogpt.config.trunks import Shared, Stack
from nanogpt.model import GPT
from nanogpt.weights.layout import Flat, Tensors

QKV = ("attention.qkv.weight", "attention.qkv.bias")
BRANCH_ENDS = ("attention.out.weight", "attention.out.bias", "ffn.down.weight", "ffn.down.bias")


def flattened(gpt: GPT, vocab_size: int) -> Flat:
    """The model of the evaluation schedule, its vocabulary cut to the first `vocab_size` tokens.

    The caller has made sure that a stack of blocks can hold it (`layouts.layout_for`).
    """
    plan, blocks = gpt.trunk.plan(gpt.trunk.evaluation()), gpt.trunk.unique()
    tensors = _outside(gpt, vocab_size)
    for layer, (block, _) in enumerate(plan):
        for name, tensor in blocks[block].state_dict().items():
            tensors[f"trunk.blocks.{layer}.{name}"] = _folded(name, tensor, gpt)
    tied = "head.weight" not in tensors
    changes: dict[str, Any] = {
        "n_layer": len(plan), "trunk": Stack(), "vocab_size": vocab_size, "tie_embeddings": tied
    }  # fmt: skip
    model = gpt.config.model_copy(update=changes)
    return Flat(model, tensors, tuple(_notes(gpt, model, vocab_size)))


def _outside(gpt: GPT, vocab_size: int) -> Tensors:
    """Embeddings, the final norm, and a head where one tensor cannot be both."""
    enters, leaves = gpt.rules.input_multiplier, gpt.rules.output_multiplier
    table = gpt.embedding.weight.detach()[:vocab_size]
    tensors = {"embedding.weight": _times(table, enters)}
    if gpt.position is not None:
        tensors["position.weight"] = _times(gpt.position.weight.detach(), enters)
    tensors |= {f"final_norm.{name}": tensor for name, tensor in gpt.final_norm.state_dict().items()}
    if gpt.head is not None:
        tensors["head.weight"] = _times(gpt.head.weight.detach()[:vocab_size], leaves)
    elif enters != leaves:
        tensors["head.weight"] = _times(table, leaves)
    return tensors


def _folded(name: str, tensor: Tensor, gpt: GPT) -> Tensor:
    if name in BRANCH_ENDS:
        return _times(tensor, gpt.rules.residual_multiplier)
    if name in QKV and not _is_one(scale := _query_scale(gpt)):
        queries = gpt.config.n_head * gpt.config.head_size
        tensor = torch.cat((tensor[:queries] * scale, tensor[queries:]))
    return tensor


def _query_scale(gpt: GPT) -> float:
    return gpt.rules.attention_scale * math.sqrt(gpt.config.head_size)


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Without a copy where there is nothing to do: models are large."""
    return tensor if _is_one(factor) else tensor * factor


def _is_one(factor: float) -> bool:
    """1 / sqrt(K) times sqrt(K) rounds to something else."""
    return math.isclose(factor, 1.0, rel_tol=1e-12)


def _unrolled(gpt: GPT, applied: int) -> str:
    """What the layers had in common, and no longer have."""
    trunk = gpt.config.trunk
    unique = len(gpt.trunk.unique())
    which = f"{unique} block{'s' if unique > 1 else ''} of weights applied {applied} times in all"
    if isinstance(trunk, Shared) and trunk.scope != "all":
        which = f"{applied} blocks that share {min(trunk.groups, applied)} {trunk.scope}"
    return f"trunk {trunk.kind} unrolled: {which}, written as {applied} layers that no longer share anything"


def _notes(gpt: GPT, flat: Any, vocab_size: int) -> list[str]:
    model, rules, notes = gpt.config, gpt.rules, []
    if model.trunk.kind != "stack":
        notes.append(_unrolled(gpt, flat.n_layer))
    named = {
        "input": rules.input_multiplier, "attention": _query_scale(gpt), "residual": rules.residual_multiplier,
        "output": rules.output_multiplier,
    }  # fmt: skip
    folded = [f"{name} {value:.6g}" for name, value in named.items() if not _is_one(value)]
    if folded:
        notes.append(f"multipliers folded into the weights: {', '.join(folded)}")
    if model.tie_embeddings and not flat.tie_embeddings:
        notes.append("the head is untied: with its multiplier it is no longer the embedding")
    if vocab_size != model.vocab_size:
        notes.append(f"vocabulary cut from {model.vocab_size} to {vocab_size} tokens: the rest only pads it")
    return notes
