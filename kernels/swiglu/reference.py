"""The SwiGLU feed-forward in plain torch."""

import torch
import torch.nn.functional as F


def swiglu_mlp(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.swiglu_mlp`: [..., C] -> [..., C]."""
    up = F.linear(x, w_up)
    return F.linear(F.silu(F.linear(x, w_gate)) * up, w_down)
