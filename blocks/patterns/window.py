"""The latest keys of the document."""

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Step
from zoo.blocks.config import Projection, Window
from zoo.blocks.parts import Context, Queries, Source
from zoo.kernels import cached_attention, window_attention


class WindowPattern(nn.Module):
    """Query t sees the `window` keys that end with its own (arXiv 2004.05150)."""

    def __init__(self, config: Window, projection: Projection):
        super().__init__()
        self.window = config.window

    def forward(self, queries: Queries, source: Source, context: Context) -> torch.Tensor:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "scale": queries.scale}
        return window_attention(queries.q, keys.k, keys.v, window=self.window, **parts, documents=context.documents)

    def cached(self, queries: Queries, source: CachedSource, step: Step) -> torch.Tensor:
        """By slots where all tokens are kept, or where the ring holds just the window of the one new token; otherwise
        by the tokens before the new ones, laid out in order."""
        cache, window = source.cache, self.window
        if not cache.ring:
            keys, end_BT = source.keys, source.end_BT
            first_BT = step.once(("window", window), lambda: (end_BT - window).clamp(min=0))
        elif step.seq_len == 1 and cache.tokens.capacity == window:
            keys, first_BT, end_BT = source.keys, step.zeros_BT, source.end_BT
        else:
            keys = source.projection.cached_keys(source.recent(window - 1))
            origin_B1 = step.start_B[:, None] - (window - 1)
            end_BT = step.positions_BT + 1
            first_BT, end_BT = (end_BT - window).clamp(min=0) - origin_B1, end_BT - origin_B1
        parts = {"q_rope": queries.rope, "k_rope_BNR": keys.rope, "scale": queries.scale}
        return cached_attention(queries.q, keys.k, keys.v, first_BT, end_BT, **parts)[0]
