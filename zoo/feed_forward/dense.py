"""The modules of `swiglu` and `gelu`.  Shapes: B batch, T tokens, C model width, F feed-forward width."""

import torch
from torch import nn

from zoo import fused
from zoo.blocks.context import Context, Step
from zoo.feed_forward.dense_config import GELU, SwiGLU


class SwiGLUModule(nn.Module):
    """W_down(silu(W_gate x) * W_up x).  [B, T, C] -> [B, T, C]."""

    def __init__(self, config: SwiGLU, d_model: int):
        super().__init__()
        self.gate = nn.Linear(d_model, config.d_ff, bias=False)
        self.up = nn.Linear(d_model, config.d_ff, bias=False)
        self.output = nn.Linear(config.d_ff, d_model, bias=False)

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        return fused.swiglu(x_BTC, self.gate.weight, self.up.weight, self.output.weight)


class GELUModule(nn.Module):
    """W_down gelu(W_up x).  [B, T, C] -> [B, T, C]."""

    def __init__(self, config: GELU, d_model: int):
        super().__init__()
        self.up = nn.Linear(d_model, config.d_ff, bias=False)
        self.output = nn.Linear(config.d_ff, d_model, bias=False)

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        return self.output(nn.functional.gelu(self.up(x_BTC)))
