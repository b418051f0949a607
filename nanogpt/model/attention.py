"""Causal self-attention with grouped key/value heads, computed by explicit matmuls or by torch's fused kernel.

Shapes: B batch, T tokens, S tokens they may look at (themselves and those in the cache), D n_embd, H query heads,
J key/value heads, G = H / J queries per key, K head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config.model import Model
from nanogpt.model.context import Context
from nanogpt.model.layers import TRAINING, Linear, Norm, rotate
from parametrization import Role, Rules


class Attention(nn.Module):
    """Multi-head (J = H) or grouped-query (J < H, arXiv 2305.13245) causal self-attention."""

    def __init__(self, model: Model, rules: Rules) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = model.n_head, model.kv_heads, model.head_size
        self.scale = rules.attention_scale
        self.dropout = model.dropout
        # One matmul is faster than three. The rows of the weight are Q, then K, then V, `qkv_rows` of each, all drawn
        # from one law; an optimizer that needs the matrices apart (Muon) takes `qkv.weight.split(qkv_rows)`, views
        # whose gradients and updates stand in the same rows of the fused tensor.
        self.qkv_rows = [heads * self.head_size for heads in (self.n_head, self.n_kv_head, self.n_kv_head)]
        self.qkv = Linear(model.n_embd, sum(self.qkv_rows), Role.HIDDEN, model.bias)
        self.out = Linear(self.n_head * self.head_size, model.n_embd, Role.ATTENTION_OUT, model.bias)
        self.q_norm = Norm(self.head_size, "rmsnorm", bias=False) if model.qk_norm else None
        self.k_norm = Norm(self.head_size, "rmsnorm", bias=False) if model.qk_norm else None

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, tokens, -1, self.head_size)
        q_BTHK, k_BTJK, v_BTJK = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTJK = self.q_norm(q_BTHK), self.k_norm(k_BTJK)
        if context.rotation is not None:
            q_BTHK, k_BTJK = rotate(q_BTHK, context.rotation), rotate(k_BTJK, context.rotation)
        # Norm and rotation compute in float32 under autocast; the matmuls want the values' type.
        q_BTHK, k_BSJK, v_BSJK = q_BTHK.to(v_BTJK.dtype), k_BTJK.to(v_BTJK.dtype), v_BTJK
        if context.cache is not None:
            k_BSJK, v_BSJK = context.cache.extend(application, k_BSJK, v_BSJK)
        dropout = self.dropout if self.training else 0.0
        if context.mask_TS is None:
            y_BTHK = fused_attention(q_BTHK, k_BSJK, v_BSJK, self.scale, dropout)
        else:
            y_BTHK = explicit_attention(q_BTHK, k_BSJK, v_BSJK, context.mask_TS, self.scale, dropout)
        return self.out(y_BTHK.reshape(batch, tokens, -1))

    def score_flops_per_token(self, tokens: int) -> int:
        """Training FLOPs of q.k and of probabilities times v for one token, counted as full attention."""
        return TRAINING * 4 * tokens * self.n_head * self.head_size

    def flops_per_token(self, tokens: int) -> int:
        """Training FLOPs per token in a context of `tokens`; matmuls only, as torch's FlopCounterMode counts."""
        return self.qkv.flops_per_token() + self.out.flops_per_token() + self.score_flops_per_token(tokens)


def explicit_attention(
    q_BTHK: Tensor, k_BSJK: Tensor, v_BSJK: Tensor, mask_TS: Tensor, scale: float, dropout: float
) -> Tensor:
    """softmax(scale q k^T + mask) v by batched matmuls: on CPUs the fastest path up to about 1024 tokens.

    The queries that share a key head are stacked along the token axis, so that keys are never repeated.
    """
    batch, tokens, n_head, size = q_BTHK.shape
    seen, n_kv_head = k_BSJK.shape[1:3]
    group = n_head // n_kv_head
    q = q_BTHK.view(batch, tokens, n_kv_head, group, size).permute(0, 2, 3, 1, 4)
    q = q.reshape(batch * n_kv_head, group * tokens, size)
    k = k_BSJK.transpose(1, 2).reshape(batch * n_kv_head, seen, size)
    v = v_BSJK.transpose(1, 2).reshape(batch * n_kv_head, seen, size)
    mask = mask_TS.to(q.dtype)
    if group > 1:
        mask = mask.repeat(group, 1)
    probabilities = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(dim=-1)
    if dropout > 0:
        probabilities = F.dropout(probabilities, dropout)
    y = torch.bmm(probabilities.to(v.dtype), v)
    y_BTHK = y.view(batch, n_kv_head, group, tokens, size).permute(0, 3, 1, 2, 4)
    return y_BTHK.reshape(batch, tokens, n_head, size)


def fused_attention(q_BTHK: Tensor, k_BSJK: Tensor, v_BSJK: Tensor, scale: float, dropout: float) -> Tensor:
    """The same by torch's scaled_dot_product_attention (FlashAttention where the device has it).

    The queries are the last T of the S tokens. torch's own causal mask takes them for the first T, so it serves only
    where the two are the same; a single query sees everything and needs no mask.
    """
    tokens, seen = q_BTHK.shape[1], k_BSJK.shape[1]
    mask_TS = None
    if 1 < tokens < seen:
        mask_TS = torch.ones(tokens, seen, dtype=torch.bool, device=q_BTHK.device).tril(seen - tokens)
    y_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSJK.transpose(1, 2),
        v_BSJK.transpose(1, 2),
        attn_mask=mask_TS,
        dropout_p=dropout,
        is_causal=tokens == seen,
        scale=scale,
        enable_gqa=q_BTHK.shape[2] != k_BSJK.shape[2],
    )
    return y_BHTK.transpose(1, 2)
