"""One pre-norm transformer block: attention, then a feed-forward layer, each a branch of the residual stream.

Shapes: B batch, T tokens, D n_embd.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config.model import Model
from nanogpt.model.attention import Attention
from nanogpt.model.context import Context
from nanogpt.model.ffn import build_ffn
from nanogpt.model.layers import Norm
from parametrization import Rules


class Block(nn.Module):
    """x + m attention(norm(x)), then x + m ffn(norm(x)), with m the parametrization's residual multiplier.

    `index` is the block's number among the unique ones: `ffn.moe_every` counts them.
    """

    def __init__(self, model: Model, rules: Rules, index: int = 0) -> None:
        super().__init__()
        self.residual_multiplier = rules.residual_multiplier
        self.dropout = model.dropout
        self.attention_norm = Norm(model.n_embd, model.norm, model.bias)
        self.attention = Attention(model, rules)
        self.ffn_norm = Norm(model.n_embd, model.norm, model.bias)
        self.ffn = build_ffn(model, index)

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        x_BTD = self._add(x_BTD, self.attention(self.attention_norm(x_BTD), context, application))
        return self._add(x_BTD, self.ffn(self.ffn_norm(x_BTD), context, application))

    def _add(self, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            branch_BTD = F.dropout(branch_BTD, self.dropout)
        return torch.add(x_BTD, branch_BTD, alpha=self.residual_multiplier)

    def flops_per_token(self, tokens: int) -> int:
        """Training FLOPs per token of one application in a context of `tokens`."""
        return self.attention.flops_per_token(tokens) + self.ffn.flops_per_token()
