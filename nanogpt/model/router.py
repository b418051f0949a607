"""The router of a mixture of experts: scores, choice, balancing losses, the selection bias and its statistics.

All of it in float32, whatever the precision of the matmuls around it (Switch, arXiv 2101.03961, section 2.4).
Shapes: B batch, T tokens, N = B T, D n_embd, E experts, k experts per token.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.config.ffns import TopKMoE
from nanogpt.model.layers import TRAINING, Layer
from parametrization import Role


class Choice(NamedTuple):
    """What a top-k router decided: the chosen experts, their weights, and a mask of the same choice."""

    experts_Nk: Tensor
    gates_Nk: Tensor
    chosen_NE: Tensor  # 1 where chosen


class Router(Layer):
    """logits = x W^T, without a bias. `number` is its place in `GPT.routers`."""

    def __init__(self, n_embd: int, experts: int) -> None:
        super().__init__()
        self.number = 0
        self.weight = nn.Parameter(torch.empty(experts, n_embd))
        self.parameter_roles = {"weight": Role.ROUTER}

    @property
    def experts(self) -> int:
        return len(self.weight)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Logits in float32, (N, E)."""
        if x_ND.is_meta or not torch.is_autocast_enabled(x_ND.device.type):
            return F.linear(x_ND.float(), self.weight)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.float(), self.weight)

    def adjust_bias(self, load_E: Tensor) -> None:
        """A router that chooses nothing has no bias."""

    def flops_per_token(self) -> int:
        """Training FLOPs of the scores for one token."""
        return TRAINING * 2 * self.weight.numel()


class TopKRouter(Router):
    """Chooses the k experts with the largest p + b, and weights them by p alone.

    b is the selection bias of `balance: bias` (arXiv 2408.15664), a buffer that no gradient reaches; else None.
    """

    bias_E: Tensor | None

    def __init__(self, n_embd: int, settings: TopKMoE) -> None:
        super().__init__(n_embd, settings.experts)
        self.settings = settings
        self.register_buffer("bias_E", torch.zeros(settings.experts) if settings.balance == "bias" else None)

    def choose(self, probabilities_NE: Tensor) -> Choice:
        """The k experts of each token. Ties go to any, equal tokens alike."""
        scores_NE = probabilities_NE.detach()
        if self.bias_E is not None:
            scores_NE = scores_NE + self.bias_E
        experts_Nk = scores_NE.topk(self.settings.top_k, dim=-1).indices
        gates_Nk = probabilities_NE.gather(-1, experts_Nk)
        if self.settings.gate == "renorm":
            gates_Nk = gates_Nk / gates_Nk.sum(dim=-1, keepdim=True)
        return Choice(experts_Nk, gates_Nk, torch.zeros_like(scores_NE).scatter_(-1, experts_Nk, 1.0))

    def auxiliary_loss(self, logits_BTE: Tensor, probabilities_BTE: Tensor, chosen_BTE: Tensor) -> Tensor | None:
        """The weighted balancing losses of a micro-batch; None where the settings ask for none."""
        losses, settings = [], self.settings
        if settings.balance == "aux":
            losses.append(settings.aux_coefficient * switch_loss(probabilities_BTE, chosen_BTE, settings))
        if settings.z_coefficient > 0:
            losses.append(settings.z_coefficient * z_loss(logits_BTE))
        return sum(losses[1:], losses[0]) if losses else None

    @torch.no_grad()
    def adjust_bias(self, load_E: Tensor) -> None:
        """b += rate * sign(mean load - load), from the loads of a whole optimizer step over all processes.

        An expert that has just its share stays where it is.
        """
        if self.bias_E is not None:
            self.bias_E += self.settings.bias_rate * torch.sign(load_E.mean() - load_E).to(self.bias_E)


def switch_loss(probabilities_BTE: Tensor, chosen_BTE: Tensor, settings: TopKMoE) -> Tensor:
    """E sum_e f_e P_e (Switch, arXiv 2101.03961, equations 4 to 6), f the share of the choices, P the mean probability.

    f adds up to 1, so the loss is 1 at balance, and E / k where the same k experts share all probability and choices.
    Under `aux_scope: sequence` it is the mean over sequences, so that it does not depend on how a batch is cut.
    """
    over = (1,) if settings.aux_scope == "sequence" else (0, 1)
    shares, means = chosen_BTE.mean(dim=over) / settings.top_k, probabilities_BTE.mean(dim=over)
    return settings.experts * (shares * means).sum(dim=-1).mean()


def z_loss(logits_BTE: Tensor) -> Tensor:
    """mean(logsumexp(logits)^2), which keeps logits small (ST-MoE, arXiv 2202.08906, equation 5)."""
    return logits_BTE.logsumexp(dim=-1).square().mean()


def within_capacity(chosen_NE: Tensor, experts_Nk: Tensor, factor: float) -> Tensor:
    """Which choices an expert has room for, (N, k): the first ceil(factor k N / E), in the order of the tokens.

    First come, first served over positions and not over first choices: a later token never displaces an earlier one.
    """
    experts = chosen_NE.shape[-1]
    room = math.ceil(round(factor * experts_Nk.numel() / experts, 9))
    # int64 counts: float32 would lose them beyond 2^24 tokens.
    place_NE = chosen_NE.to(torch.int64).cumsum(dim=0)
    return place_NE.gather(-1, experts_Nk) <= room


@torch.no_grad()
def statistics(
    logits_NE: Tensor, probabilities_NE: Tensor, load_E: Tensor, dropped: Tensor | None = None
) -> dict[str, Tensor]:
    """Sums over the tokens of one application, to be added up over micro-batches, steps and processes."""
    return {
        "tokens": load_E.new_full((), len(logits_NE)),
        "load": load_E,
        "probability": probabilities_NE.sum(dim=0),
        "logit_square": logits_NE.square().sum() / logits_NE.shape[-1],
        "dropped": load_E.new_zeros(()) if dropped is None else dropped,
    }
