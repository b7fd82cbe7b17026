"""The latest keys of the document."""

from collections.abc import Mapping

from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Attended, Queries, Source
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import cached_attention, window_attention


class WindowPattern(nn.Module):
    """Query t sees the `window` keys that end with its own (arXiv 2004.05150)."""

    def __init__(self, config: Window, projection: ResolvedProjection):
        super().__init__()
        self.window = config.window

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Attended:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, **queries.scores}
        options = {"window": self.window, "documents": context.documents}
        return Attended(window_attention(queries.q, keys.k, keys.v, **options, **parts))

    def keep(self, buffers: Mapping[str, Slots], source: Source, result: Attended, step: Step) -> None:
        pass  # it reads the tokens only

    def cached(
        self,
        queries: Queries,
        source: CachedSource,
        step: Step,
        results: Mapping[str, Attended],
        buffers: Mapping[str, Slots],
    ) -> Attended:
        """Read the slots as they are if all tokens are kept, or if the ring holds exactly the window of the one new
        token; otherwise lay out the tokens before the new ones in order."""
        window = self.window
        if not source.ring:
            keys, end_BT = source.keys, source.end_BT
            first_BT = step.once(("window", window), lambda: (end_BT - window).clamp(min=0))
        elif step.seq_len == 1 and source.tokens.capacity == window:
            keys, first_BT, end_BT = source.keys, step.zeros_BT, source.end_BT
        else:
            keys = source.projection.cached_keys(source.recent(window - 1))
            origin_B1 = step.start_B[:, None] - (window - 1)
            end_BT = step.positions_BT + 1
            first_BT, end_BT = (end_BT - window).clamp(min=0) - origin_B1, end_BT - origin_B1
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, **queries.scores}
        return Attended(cached_attention(queries.q, keys.k, keys.v, first_BT, end_BT, **parts)[0])
