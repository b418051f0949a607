"""LLaMA's layout in transformers: its config.json, and the names and shapes of its tensors. Imports no torch.

Both turn the pairs (i, i + K/2) of a head by RoPE, so that queries and keys need no permutation.
"""

from typing import Any, ClassVar

from nanogpt.config.errors import UserError
from nanogpt.config.model import Model
from nanogpt.weights.layout import Fields, Layout, Tensors

FIXED = {"rms_norm_eps": 1e-5, "hidden_act": "silu"}
LINEARS = {"attention.out": "self_attn.o_proj", "ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj",
           "ffn.down": "mlp.down_proj"}  # fmt: skip
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Llama(Layout):
    """stack + RoPE + RMSNorm + SwiGLU, with or without biases, with grouped key/value heads."""

    name = "llama"
    title = "LLaMA"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    outside: ClassVar = {
        "model.embed_tokens.weight": "embedding.weight",
        "model.norm.weight": "final_norm.gain",
        "lm_head.weight": "head.weight",
    }
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def section(self, fields: Fields) -> dict[str, Any]:
        fields.expect(FIXED)
        heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
        fields.expect({"head_dim": width // heads})
        return {
            "n_layer": fields.count("num_hidden_layers"),
            "n_head": heads,
            "n_kv_head": fields.count("num_key_value_heads", heads),
            "n_embd": width,
            "block_size": fields.count("max_position_embeddings", 2048),
            "vocab_size": fields.count("vocab_size"),
            "norm": "rmsnorm",
            "position": "rope",
            "rope_theta": _theta(fields),
            "bias": bool(fields.get("attention_bias", False) or fields.get("mlp_bias", False)),
            "tie_embeddings": fields.get("tie_word_embeddings", False),
            "ffn": {"kind": "swiglu", "hidden": fields.count("intermediate_size")},
        }

    def obstacles(self, model: Model) -> list[str]:
        found = []
        if model.position != "rope":
            found.append(f"position={model.position} (only rope)")
        if model.norm != "rmsnorm":
            found.append(f"norm={model.norm} (only rmsnorm)")
        if model.ffn.dense_kind != "swiglu":
            found.append(f"ffn={model.ffn.dense_kind} (only swiglu)")
        return found

    def config(self, model: Model) -> dict[str, Any]:
        return {
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.n_head,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "hidden_size": model.n_embd,
            "intermediate_size": model.ffn_hidden,
            "max_position_embeddings": model.block_size,
            # Where transformers had it up to its version 4, and where it has it since.
            "rope_theta": model.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
            "attention_bias": model.bias,
            "mlp_bias": model.bias,
            "attention_dropout": model.dropout,
            **FIXED,
        }

    def block_to_theirs(self, flat: Tensors, model: Model, number: int) -> Tensors:
        ours, theirs = f"trunk.blocks.{number}.", f"model.layers.{number}."
        rows = [heads * model.head_size for heads in (model.n_head, model.kv_heads, model.kv_heads)]
        found = {f"{theirs}{other}.weight": flat[f"{ours}{one}.gain"] for one, other in NORMS.items()}
        for kind in ("weight", "bias") if model.bias else ("weight",):
            parts = flat[f"{ours}attention.qkv.{kind}"].split(rows)
            found |= {f"{theirs}{other}.{kind}": part for other, part in zip(QKV, parts, strict=True)}
            found |= {f"{theirs}{other}.{kind}": flat[f"{ours}{one}.{kind}"] for one, other in LINEARS.items()}
        return found

    def block_to_ours(self, theirs: Tensors, model: Model, number: int) -> Tensors:
        import torch

        ours, prefix = f"trunk.blocks.{number}.", f"model.layers.{number}."
        found = {f"{ours}{one}.gain": theirs[f"{prefix}{other}.weight"] for one, other in NORMS.items()}
        for one, others in {"attention.qkv": QKV, **{one: (other,) for one, other in LINEARS.items()}}.items():
            weights = [theirs[f"{prefix}{other}.weight"] for other in others]
            found[f"{ours}{one}.weight"] = torch.cat(weights)
            if model.bias:  # attention or the feed-forward layer may be without: zeros then
                named = zip(others, weights, strict=True)
                biases = [theirs.get(f"{prefix}{other}.bias", weight.new_zeros(len(weight))) for other, weight in named]
                found[f"{ours}{one}.bias"] = torch.cat(biases)
        return found


def _theta(fields: Fields) -> float:
    """RoPE's base. Raises UserError for frequencies that are scaled."""
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        raise UserError(f"{fields.place}: rope_type={kind}: our RoPE has only the default one")
    return float(given.get("rope_theta", fields.get("rope_theta", 10000.0)))
