"""Every earlier key of the document."""

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Step
from zoo.blocks.config import Full, Projection
from zoo.blocks.parts import Context, Queries, Source
from zoo.kernels import cached_attention, full_attention


class FullPattern(nn.Module):
    """Query t sees keys 0..t of its document."""

    def __init__(self, config: Full, projection: Projection):
        super().__init__()

    def forward(self, queries: Queries, source: Source, context: Context) -> torch.Tensor:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope}
        return full_attention(queries.q, keys.k, keys.v, **parts, scale=queries.scale, documents=context.documents)

    def cached(self, queries: Queries, source: CachedSource, step: Step) -> torch.Tensor:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope_BNR": keys.rope, "scale": queries.scale}
        return cached_attention(queries.q, keys.k, keys.v, step.zeros_BT, source.end_BT, **parts)[0]
