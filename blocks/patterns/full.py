"""Every earlier key of the document."""

import torch
from torch import nn

from zoo.blocks.config import Full
from zoo.blocks.parts import Context, Queries, Source
from zoo.kernels import full_attention


class FullPattern(nn.Module):
    """Query t sees keys 0..t of its document."""

    def __init__(self, config: Full, entries: dict[str, tuple[int, ...]]):
        super().__init__()

    def forward(self, queries: Queries, source: Source, context: Context, compressed=None) -> torch.Tensor:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope}
        return full_attention(queries.q, keys.k, keys.v, **parts, scale=queries.scale, documents=context.documents)
