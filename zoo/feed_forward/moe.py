"""The module of `moe`.

Shapes: B batch, T tokens, N = B T, C model width, F width of an expert, E experts, K experts of a token, G groups of
experts, S = N K choices, sorted by expert.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.drawing import is_drawn
from zoo.blocks.parts import linear
from zoo.feed_forward.dense import SwiGLUModule
from zoo.feed_forward.dense_config import SwiGLU
from zoo.feed_forward.moe_config import SWISH, MoE
from zoo.kernels import grouped_linear
from zoo.model import fused

TINY = 1e-20  # added to sums of scores before a division


def _drawn(experts: int, outputs: int, inputs: int) -> torch.Tensor:
    """Matrices drawn as torch draws those of an nn.Linear: a layer may be built alone. A decoder draws them later."""
    bound, matrices = inputs**-0.5, torch.empty(experts, outputs, inputs)
    return matrices.uniform_(-bound, bound) if is_drawn() else matrices


class MoEModule(nn.Module):
    """The sum of the chosen experts by their weights, and of the shared ones.  [B, T, C] -> [B, T, C].

    gate, up: [E, F, C], down: [E, C, F], the matrices of each expert.  gate_bias, up_bias: [E, F], down_bias: [E, C],
    or None.
    balance_bias: [E] float32, added to the scores when experts are chosen, saved with the weights; None without
    `balance_rate`.
    """

    def __init__(self, config: MoE, d_model: int):
        super().__init__()
        self.config = config
        experts, width = config.n_experts, config.d_ff
        self.router = linear(d_model, experts, config.router_bias)
        self.gate = nn.Parameter(_drawn(experts, width, d_model))
        self.up = nn.Parameter(_drawn(experts, width, d_model))
        self.down = nn.Parameter(_drawn(experts, d_model, width))
        biases = {"gate_bias": width, "up_bias": width, "down_bias": d_model}
        for name, size in biases.items():
            bias = nn.Parameter(torch.zeros(experts, size)) if config.expert_bias else None
            self.register_parameter(name, bias)
            if bias is not None:
                bias.weight_decay = False  # type: ignore[attr-defined] # as all biases, though it is a matrix
        shared = SwiGLU(d_ff=config.shared_width) if config.n_shared else None
        self.shared = None if shared is None else SwiGLUModule(shared, d_model)
        self.shared_gate = linear(d_model, 1) if config.shared_gate else None
        self.balance_bias: torch.Tensor | None
        self.register_buffer("balance_bias", torch.zeros(experts) if config.balance_rate else None)
        # Choices of each expert since the last `after_batch`. No buffer: DistributedDataParallel would overwrite it.
        self.counts_E: torch.Tensor | None = None

    def initialise(self, generator: torch.Generator, std: float, residual_std: float) -> None:
        """Draw all weights as those of linear maps, those that write to the residual stream with residual_std; biases
        are 0."""
        writing = [self.down, *([] if self.shared is None else [self.shared.output.weight])]
        small = {id(parameter) for parameter in writing}
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
                continue
            parameter.normal_(0.0, residual_std if id(parameter) in small else std, generator=generator)

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        x_NC = x_BTC.flatten(0, 1)
        logits_NE = self._logits(x_NC)
        scores_NE = logits_NE.softmax(-1) if self.config.router == "softmax" else logits_NE.sigmoid()
        chosen_NK = self._choose(scores_NE.detach())
        order_S = chosen_NK.flatten().argsort(stable=True)
        counts_E = torch.zeros_like(logits_NE[0], dtype=torch.int64)
        counts_E.scatter_add_(0, chosen_NK.flatten(), torch.ones_like(order_S))
        if self.training:
            self._count(counts_E)
            if self.config.balance_loss or self.config.z_loss:
                context.add_loss(self._own_loss(logits_NE, scores_NE, counts_E))
        choices = Choices(order_S, chosen_NK.flatten()[order_S], counts_E)
        y_NC = self._experts(x_NC, self._weights(scores_NE, chosen_NK), choices)
        if self.shared is not None:
            shared_NC = self.shared(x_NC[None], context)[0]
            y_NC = y_NC + (shared_NC if self.shared_gate is None else self.shared_gate(x_NC).sigmoid() * shared_NC)
        return y_NC.view(x_BTC.shape)

    def after_batch(self, total: Callable[[torch.Tensor], None]) -> dict[str, torch.Tensor]:
        """Move the bias by what the batch chose (arXiv 2408.15664, algorithm 1).

        total: sums a tensor over all devices, in place.  Returns the loads of the busiest and of the idlest expert, as
        multiples of the mean.
        """
        if self.counts_E is None:
            return {}
        total(self.counts_E)
        load_E = self.counts_E.float()
        load_E = load_E / load_E.mean()
        if self.balance_bias is not None:
            self.balance_bias += self.config.balance_rate * (1 - load_E).sign()
        self.counts_E.zero_()
        return {"expert_load_max": load_E.max(), "expert_load_min": load_E.min()}

    def _logits(self, x_NC: torch.Tensor) -> torch.Tensor:
        """Router logits [N, E] in float32, because rounded logits could change the choice."""
        with nullcontext() if x_NC.is_meta else torch.autocast(x_NC.device.type, enabled=False):
            wide = x_NC if x_NC.dtype == torch.float64 else x_NC.float()
            bias = self.router.bias
            return F.linear(wide, self.router.weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))

    def _choose(self, scores_NE: torch.Tensor) -> torch.Tensor:
        """The experts of each token, int64 [N, K]."""
        config = self.config
        if self.balance_bias is not None:
            scores_NE = scores_NE + self.balance_bias
        if config.of_groups < config.n_groups:
            scores_NGE = scores_NE.unflatten(1, (config.n_groups, -1))
            best_NG = scores_NGE.topk(min(2, scores_NGE.shape[2]), -1).values.sum(-1)
            left_NG = torch.ones_like(best_NG, dtype=torch.bool)
            left_NG.scatter_(1, best_NG.topk(config.of_groups, -1).indices, False)
            scores_NE = scores_NGE.masked_fill(left_NG[..., None], -torch.inf).flatten(1)
        return scores_NE.topk(config.n_active, -1).indices

    def _weights(self, scores_NE: torch.Tensor, chosen_NK: torch.Tensor) -> torch.Tensor:
        """What each chosen expert's result is multiplied by, [N, K]."""
        weights_NK = scores_NE.gather(1, chosen_NK)
        if self.config.normalise:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + TINY)
        return weights_NK * self.config.route_scale

    def _experts(self, x_NC: torch.Tensor, weights_NK: torch.Tensor, choices: "Choices") -> torch.Tensor:
        """The chosen experts' results, weighted and added, [N, C]."""
        dtype, order_S = fused.compute_dtype(x_NC), choices.order_S
        ends_E = choices.counts_E.cumsum(0).to(torch.int32)

        def mapped(x: torch.Tensor, name: str) -> torch.Tensor:
            y = grouped_linear(x, getattr(self, name).to(dtype), ends_E)
            bias = getattr(self, f"{name}_bias")
            return y if bias is None else y + _OfExperts.apply(bias.to(dtype), choices.expert_S)

        inverse_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
        x_SC = _ToChoices.apply(x_NC.to(dtype), order_S, inverse_S, weights_NK.shape[1])
        if self.config.weigh == "input":
            x_SC = x_SC * _Reordered.apply(weights_NK.flatten(), order_S, inverse_S)[:, None].to(dtype)
        hidden_SF = self._hidden(mapped(x_SC, "gate"), mapped(x_SC, "up"))
        y_SC = mapped(hidden_SF, "down")
        y_NKC = _Reordered.apply(y_SC, inverse_S, order_S).unflatten(0, weights_NK.shape)
        if self.config.weigh == "input":
            return y_NKC.sum(1)
        return (y_NKC * weights_NK[..., None].to(dtype)).sum(1)

    def _hidden(self, gate_SF: torch.Tensor, up_SF: torch.Tensor) -> torch.Tensor:
        """The hidden values of experts, of two products of their input."""
        clamp = self.config.clamp
        if clamp is None:
            return F.silu(gate_SF) * up_SF
        gate_SF, up_SF = gate_SF.clamp(max=clamp), up_SF.clamp(-clamp, clamp)
        return (up_SF + 1) * (gate_SF * torch.sigmoid(SWISH * gate_SF))

    def _own_loss(self, logits_NE: torch.Tensor, scores_NE: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """What balances the experts (Switch Transformers, eq. 4) and keeps logits small (ST-MoE, eq. 5); a scalar."""
        config = self.config
        if config.router == "sigmoid":
            scores_NE = scores_NE / (scores_NE.sum(-1, keepdim=True) + TINY)
        share_E = counts_E.to(scores_NE.dtype) / (len(scores_NE) * config.n_active)
        balance = config.n_experts * (share_E * scores_NE.mean(0)).sum()
        z = logits_NE.logsumexp(-1).square().mean() if config.z_loss else 0.0
        return config.balance_loss * balance + config.z_loss * z

    @torch.no_grad()
    def _count(self, counts_E: torch.Tensor) -> None:
        """Add to the counts of the batch. With activation checkpointing every layer counts twice: no load changes."""
        if self.counts_E is None or self.counts_E.device != counts_E.device:
            self.counts_E = torch.zeros_like(counts_E)
        self.counts_E += counts_E


class Choices(NamedTuple):
    """Choices in the order of their experts: order_S, where each comes from; expert_S, whose it is; counts_E."""

    order_S: torch.Tensor
    expert_S: torch.Tensor
    counts_E: torch.Tensor


class _OfExperts(torch.autograd.Function):
    """The row of each choice's expert: [E, F] -> [S, F]. Its gradient is a product, and adds in a fixed order."""

    @staticmethod
    def forward(ctx, x_EF, expert_S):
        ctx.save_for_backward(expert_S)
        ctx.n_experts = len(x_EF)
        return x_EF.index_select(0, expert_S)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_SF):
        (expert_S,) = ctx.saved_tensors
        is_its_ES = expert_S == torch.arange(ctx.n_experts, device=expert_S.device)[:, None]
        return is_its_ES.to(grad_SF.dtype) @ grad_SF, None


class _ToChoices(torch.autograd.Function):
    """The row of each choice, sorted by expert: [N, C] -> [S, C]. Its gradient adds in a fixed order."""

    @staticmethod
    def forward(ctx, x_NC, order_S, inverse_S, k: int):
        ctx.save_for_backward(inverse_S)
        ctx.k = k
        return x_NC.index_select(0, order_S // k)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_SC):
        (inverse_S,) = ctx.saved_tensors
        return grad_SC.index_select(0, inverse_S).unflatten(0, (-1, ctx.k)).sum(1), None, None, None


class _Reordered(torch.autograd.Function):
    """x[order] of a permutation, whose gradient is grad[inverse]."""

    @staticmethod
    def forward(ctx, x_S, order_S, inverse_S):
        ctx.save_for_backward(inverse_S)
        return x_S.index_select(0, order_S)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_S):
        (inverse_S,) = ctx.saved_tensors
        return grad_S.index_select(0, inverse_S), None, None
