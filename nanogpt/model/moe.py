"""The mixtures of experts: soft (every expert, weighted) and top-k (the chosen ones). Both causal: routed per token.

Shapes: B batch, T tokens, N = B T, D n_embd, E experts, k experts per token, M = N k rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.config.ffns import Mixture
from nanogpt.config.ffns import TopKMoE as TopKSettings
from nanogpt.config.model import Model
from nanogpt.model.context import Context, Routed
from nanogpt.model.dense import FeedForward, dense_ffn
from nanogpt.model.experts import Experts
from nanogpt.model.router import Router, TopKRouter, statistics, within_capacity


class SoftMoE(FeedForward):
    """y = sum_e softmax(W x)_e FFN_e(x) over all experts (Jacobs et al. 1991). It needs no balancing."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert isinstance(model.ffn, Mixture)
        self.router = Router(model.n_embd, model.ffn.experts)
        self.experts = Experts(model, model.ffn.experts)

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        weights_NE = logits_NE.softmax(dim=-1)
        y_ND = (self.experts.every(x_ND) * weights_NE.T[..., None]).sum(dim=0)
        sums = statistics(logits_NE, weights_NE, weights_NE.detach().sum(dim=0))
        context.routed.append(Routed(application, None, sums, self.router.number))
        return y_ND.view_as(x_BTD)

    def flops_per_token(self) -> int:
        """Every expert and the router."""
        return self.router.flops_per_token() + self.experts.count * self.experts.flops_per_row()


class TopKMoE(FeedForward):
    """y = sum over the k chosen experts of g_e FFN_e(x), and the shared experts beside them.

    No token is dropped, but under `capacity_factor` in training: what finds no room gets weight 0. It is computed all
    the same, so that costs and shapes do not depend on the load.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert isinstance(model.ffn, TopKSettings)
        self.settings = model.ffn
        self.router = TopKRouter(model.n_embd, model.ffn)
        self.experts = Experts(model, model.ffn.experts)
        self.shared = nn.ModuleList(dense_ffn(model) for _ in range(model.ffn.shared_experts))

    def forward(self, x_BTD: Tensor, context: Context, application: int) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        probabilities_NE = logits_NE.softmax(dim=-1)
        experts_Nk, gates_Nk, chosen_NE = self.router.choose(probabilities_NE)
        load_E, dropped = chosen_NE.sum(dim=0), None
        if self.training and self.settings.capacity_factor is not None:
            served_Nk = within_capacity(chosen_NE, experts_Nk, self.settings.capacity_factor)
            gates_Nk, dropped = gates_Nk * served_Nk, (~served_Nk).sum()
        y_BTD = self._mix(x_ND, experts_Nk, gates_Nk, load_E).view_as(x_BTD)
        for expert in self.shared:
            y_BTD = y_BTD + expert(x_BTD, context, application)
        loss = None
        if self.training:
            shape = (*x_BTD.shape[:2], -1)
            loss = self.router.auxiliary_loss(*(x.view(shape) for x in (logits_NE, probabilities_NE, chosen_NE)))
        sums = statistics(logits_NE, probabilities_NE, load_E, dropped)
        context.routed.append(Routed(application, loss, sums, self.router.number))
        return y_BTD

    def _mix(self, x_ND: Tensor, experts_Nk: Tensor, gates_Nk: Tensor, load_E: Tensor) -> Tensor:
        """Sort the rows by expert, apply the experts, put the rows back in their order and weight them."""
        tokens, k = experts_Nk.shape
        expert_M, order_M = experts_Nk.flatten().sort(stable=True)
        place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(tokens * k, device=order_M.device))
        rows_MD: Any = _Rows.apply(x_ND, order_M, place_M, k)
        rows_MD = self.experts.sorted(rows_MD, expert_M, load_E.long())
        rows_MD = _Rows.apply(rows_MD, place_M, order_M, 1)
        return (rows_MD.view(tokens, k, -1) * gates_Nk[..., None]).sum(dim=1)

    def flops_per_token(self) -> int:
        """The k chosen experts, the shared ones and the router."""
        shared = sum(expert.flops_per_token() for expert in self.shared if isinstance(expert, FeedForward))
        return self.router.flops_per_token() + self.settings.top_k * self.experts.flops_per_row() + shared

    def idle_parameters(self) -> int:
        """The experts that a token is not sent to."""
        numbers = sum(parameter.numel() for parameter in self.experts.parameters())
        return numbers // self.experts.count * (self.experts.count - self.settings.top_k)


class _Rows(torch.autograd.Function):
    """x[order // k], where `order` permutes k copies of each row of x and `place` is its inverse.

    The gradient is gathered by the inverse: torch's own adds up by index, which on a GPU is slow or not repeatable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order_M: Tensor, place_M: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place_M)
        ctx.k = k
        return x[order_M // k if k > 1 else order_M]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (place_M,) = ctx.saved_tensors
        gradient = gradient[place_M]
        if ctx.k > 1:
            gradient = gradient.view(-1, ctx.k, gradient.shape[-1]).sum(dim=1)
        return gradient, None, None, None
