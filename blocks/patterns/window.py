"""The latest keys of the document."""

import torch
from torch import nn

from zoo.blocks.config import Window
from zoo.blocks.parts import Context, Queries, Source
from zoo.kernels import window_attention


class WindowPattern(nn.Module):
    """Query t sees the `window` keys that end with its own (arXiv 2004.05150)."""

    def __init__(self, config: Window, entries: dict[str, tuple[int, ...]]):
        super().__init__()
        self.window = config.window

    def forward(self, queries: Queries, source: Source, context: Context, compressed=None) -> torch.Tensor:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "scale": queries.scale}
        return window_attention(queries.q, keys.k, keys.v, window=self.window, **parts, documents=context.documents)
