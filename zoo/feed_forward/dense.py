"""The modules of `swiglu`, `geglu`, `gelu` and `relu2`.

Shapes: B batch, T tokens, C model width, F feed-forward width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.functional import gelu, relu, silu

from zoo.blocks.context import Context, Step
from zoo.blocks.parts import linear
from zoo.feed_forward.dense_config import Gated, Ungated
from zoo.model import fused


def _relu2(x: torch.Tensor) -> torch.Tensor:
    """A product, because autocast computes powers in float32."""
    positive = relu(x)
    return positive * positive


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_exact": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu2": _relu2,
    "silu": silu,
}


class GatedModule(nn.Module):
    """W_down(f(W_gate x) * W_up x), f the config's activation.  [B, T, C] -> [B, T, C]."""

    def __init__(self, config: Gated, d_model: int):
        super().__init__()
        self.gate = linear(d_model, config.d_ff, config.bias)
        self.up = linear(d_model, config.d_ff, config.bias)
        self.output = linear(config.d_ff, d_model, config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        return self.output(self.activation(self.gate(x_BTC)) * self.up(x_BTC))


class SwiGLUModule(GatedModule):
    """The same with silu, fused where there are no biases."""

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        if self.output.bias is not None:  # which the fused operation does not have
            return super().forward(x_BTC, context)
        return fused.swiglu(x_BTC, self.gate.weight, self.up.weight, self.output.weight)


class DenseModule(nn.Module):
    """W_down f(W_up x), f the config's activation.  [B, T, C] -> [B, T, C]."""

    def __init__(self, config: Ungated, d_model: int):
        super().__init__()
        self.up = linear(d_model, config.d_ff, config.bias)
        self.output = linear(config.d_ff, d_model, config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> torch.Tensor:
        return self.output(self.activation(self.up(x_BTC)))
