"""Every earlier key of the document."""

from collections.abc import Mapping

from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Attended, Queries, Source
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import cached_attention, full_attention


class FullPattern(nn.Module):
    """Query t sees keys 0..t of its document."""

    def __init__(self, config: Full, projection: ResolvedProjection):
        super().__init__()

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Attended:
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "documents": context.documents}
        return Attended(full_attention(queries.q, keys.k, keys.v, **parts, **queries.scores))

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
        keys = source.keys
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, **queries.scores}
        return Attended(cached_attention(queries.q, keys.k, keys.v, step.zeros_BT, source.end_BT, **parts)[0])
