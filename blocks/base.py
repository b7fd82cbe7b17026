"""The attention module of every kind of block: a projection, patterns, a gate between them, an output projection.

Shape suffixes of blocks/:
    B batch, T tokens, C model width, H query heads, K key/value heads, D content width of a head, V value width,
    R rotary width (of a latent: its channels), J latent heads, N compression slots, L tokens of a block, P patterns.
"""

import torch
from torch import nn

from zoo.blocks.config import AttentionConfig
from zoo.blocks.parts import Context, Source, linear
from zoo.blocks.patterns import build_patterns
from zoo.blocks.projections import build_projection
from zoo.kernels import gated_sum

__all__ = ["Attention", "Context"]


class Attention(nn.Module):
    """y = W_O sum over patterns of sigmoid(W_G x) * pattern(q, k, v); one gate for each token, head and pattern.

    A block with one pattern has no gate. `output` is W_O, which writes to the residual stream.
    """

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        config = config.grid_point(d_model)
        heads, n_patterns = config.projection.n_heads, len(config.patterns)
        self.config = config
        self.projection = build_projection(config, d_model)
        self.patterns = build_patterns(config)
        self.gate = linear(d_model, heads * n_patterns) if n_patterns > 1 else None
        self.output = linear(heads * config.projection.v_head_dim, d_model)

    def forward(self, x_BTC: torch.Tensor, context: Context) -> torch.Tensor:
        """x_BTC: [B, T, C] floating; `context` made for the same B and T. Returns y_BTC."""
        outputs = self.attend(x_BTC, context)
        if self.gate is None:
            return self.output(outputs[0].flatten(-2))
        gate_BTHP = self.gate(x_BTC).unflatten(-1, (-1, len(outputs)))
        return self.output(gated_sum(outputs, gate_BTHP).flatten(-2))

    def attend(self, x_BTC: torch.Tensor, context: Context) -> list[torch.Tensor]:
        """The output o_BTHV of each pattern, before the gate."""
        if x_BTC.shape[1] != context.positions_BT.shape[1]:
            found = f"{x_BTC.shape[1]}, the context is for {context.positions_BT.shape[1]}"
            raise ValueError(f"attention: x must have as many tokens as the context; found {found}")
        queries = self.projection.queries(x_BTC, context)
        sources = [Source(self.projection, raw, context) for raw in self.projection.entries(x_BTC)]
        source = dict(zip(self.patterns, sources * (len(self.patterns) // len(sources)), strict=True))
        compressed = None
        if "compression" in self.patterns:
            compressed = self.patterns["compression"](queries, source["compression"], context)
        return [
            compressed.output if kind == "compression" else pattern(queries, source[kind], context, compressed)
            for kind, pattern in self.patterns.items()
        ]
