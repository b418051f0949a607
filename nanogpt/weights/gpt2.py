"""GPT-2's layout in transformers: its config.json, and the names and shapes of its tensors. Imports no torch.

Linear layers are `Conv1D` there: their weights lie transposed. "Flat" tensors are those of our plain stack of blocks.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from nanogpt.config.model import Model
from nanogpt.weights.layout import Fields, Flat, Layout, Tensors

if TYPE_CHECKING:
    from torch import Tensor

# transformers' names of what GPT-2's feed-forward layer may compute, by ours; the first is written.
ACTIVATIONS = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "gelu_exact": ("gelu",),
    "relu2": ("relu2",),
}
# Of transformers' GPT2Config: what would make another function of the same tensors.
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


class GPT2(Layout):
    """stack + learned positions + LayerNorm + a feed-forward layer of two matrices, biases everywhere."""

    name = "gpt2"
    title = "GPT-2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    outside: ClassVar = {
        "transformer.wte.weight": "embedding.weight",
        "transformer.wpe.weight": "position.weight",
        "transformer.ln_f.weight": "final_norm.gain",
        "transformer.ln_f.bias": "final_norm.bias",
        "lm_head.weight": "head.weight",
    }
    ignored = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)  # causal masks of old checkpoints

    def section(self, fields: Fields) -> dict[str, Any]:
        fields.expect(FIXED)
        kinds = {theirs: ours for ours, names in ACTIVATIONS.items() for theirs in names}
        return {
            "n_layer": fields.count("n_layer"),
            "n_head": fields.count("n_head"),
            "n_embd": fields.count("n_embd"),
            "block_size": fields.count("n_positions"),
            "vocab_size": fields.count("vocab_size"),
            "norm": "layernorm",
            "position": "learned",
            "bias": True,
            "tie_embeddings": fields.get("tie_word_embeddings", True),
            "ffn": {
                "kind": fields.choice("activation_function", kinds, "gelu_new"),
                "hidden": fields.count("n_inner", 4 * fields.count("n_embd")),
            },
        }

    def obstacles(self, model: Model) -> list[str]:
        found = []
        if model.position != "learned":
            found.append(f"position={model.position} (only learned)")
        if model.norm != "layernorm":
            found.append(f"norm={model.norm} (only layernorm)")
        if model.ffn.dense_kind not in ACTIVATIONS:
            found.append(f"ffn={model.ffn.dense_kind} (only {', '.join(ACTIVATIONS)})")
        return found

    def config(self, model: Model) -> dict[str, Any]:
        return {
            "n_layer": model.layers,
            "n_head": model.n_head,
            "n_embd": model.n_embd,
            "n_inner": model.ffn_hidden,
            "n_positions": model.block_size,
            "n_ctx": model.block_size,
            "activation_function": ACTIVATIONS[model.ffn.kind][0],
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), model.dropout),
            **FIXED,
        }

    def notes(self, model: Model) -> list[str]:
        found = [] if model.bias else ["GPT-2 has biases everywhere: they are zeros"]
        if model.kv_heads < model.n_head:
            found.append(f"GPT-2 has as many key and value heads as heads: each of {model.kv_heads} stands repeated")
        return found

    def block_to_theirs(self, flat: Tensors, model: Model, number: int) -> Tensors:
        ours, theirs = f"trunk.blocks.{number}.", f"transformer.h.{number}."
        heads = _repeated(flat, ours, model)
        found = {
            f"{theirs}attn.c_attn.weight": heads[0].t(),
            f"{theirs}attn.c_attn.bias": heads[1],
        }
        for one, other in LINEARS.items():
            weight = flat[f"{ours}{one}.weight"]
            found[f"{theirs}{other}.weight"] = weight.t()
            found[f"{theirs}{other}.bias"] = _bias(flat, f"{ours}{one}.bias", weight)
        for one, other in NORMS.items():
            gain = flat[f"{ours}{one}.gain"]
            found[f"{theirs}{other}.weight"] = gain
            found[f"{theirs}{other}.bias"] = _bias(flat, f"{ours}{one}.bias", gain)
        return found

    def block_to_ours(self, theirs: Tensors, model: Model, number: int) -> Tensors:
        ours, prefix = f"trunk.blocks.{number}.", f"transformer.h.{number}."
        found = {}
        for one, other in {"attention.qkv": "attn.c_attn", **LINEARS}.items():
            found[f"{ours}{one}.weight"] = theirs[f"{prefix}{other}.weight"].t()
            found[f"{ours}{one}.bias"] = theirs[f"{prefix}{other}.bias"]
        for one, other in NORMS.items():
            found[f"{ours}{one}.gain"] = theirs[f"{prefix}{other}.weight"]
            found[f"{ours}{one}.bias"] = theirs[f"{prefix}{other}.bias"]
        return found

    def finish(self, flat: Flat, theirs: Tensors) -> Tensors:
        if flat.model.bias:
            return theirs
        return theirs | {"transformer.ln_f.bias": theirs["transformer.ln_f.weight"].new_zeros(flat.model.n_embd)}


LINEARS = {"attention.out": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
NORMS = {"attention_norm": "ln_1", "ffn_norm": "ln_2"}


def _bias(flat: Tensors, name: str, weight: "Tensor") -> "Tensor":
    return flat[name] if name in flat else weight.new_zeros(weight.shape[0])


def _repeated(flat: Tensors, ours: str, model: Model) -> tuple["Tensor", "Tensor"]:
    """Weight and bias of q, k and v, each key and value head as often as there are queries for it."""
    import torch

    weight = flat[f"{ours}attention.qkv.weight"]
    both = (weight, _bias(flat, f"{ours}attention.qkv.bias", weight))
    size, group = model.head_size, model.n_head // model.kv_heads
    found = []
    for each in both:
        q, k, v = each.split([heads * size for heads in (model.n_head, model.kv_heads, model.kv_heads)])
        k, v = (part.unflatten(0, (model.kv_heads, size)).repeat_interleave(group, 0).flatten(0, 1) for part in (k, v))
        found.append(torch.cat((q, k, v)))
    return found[0], found[1]
