"""The keys of the query's own chunk, as full attention in shorter rows, or in shorter documents."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Attended, Keys, Queries, Source
from zoo.blocks.patterns.chunked_config import Chunked
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import Documents, cached_attention, full_attention


class ChunkedPattern(nn.Module):
    """Query t sees the keys from the first of its chunk up to its own (Llama 4); chunks begin with the document.

    Rows of one document are cut into rows of a chunk, and into a shorter one that is left, so that the quickest full
    attention serves them. In rows of several documents each chunk becomes a document.
    """

    def __init__(self, config: Chunked, projection: ResolvedProjection):
        super().__init__()
        self.chunk = config.chunk

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Attended:
        keys, seq_len = source.keys, queries.q.shape[1]
        if context.documents is not None:
            return Attended(self._attend(queries, keys, self._chunks(context.documents)))
        whole = seq_len // self.chunk * self.chunk
        parts = [(lo, hi) for lo, hi in ((0, whole), (whole, seq_len)) if hi > lo]
        outputs = [self._rows(queries, keys, lo, hi) for lo, hi in parts]
        return Attended(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1))

    def _rows(self, queries: Queries, keys: Keys, lo: int, hi: int) -> torch.Tensor:
        """o [B, hi - lo, H, V] of the tokens lo .. hi - 1, which are whole chunks, or part of one."""
        width = min(self.chunk, hi - lo)

        def cut(x: Any) -> Any:
            return None if x is None else x[:, lo:hi].unflatten(1, (-1, width)).flatten(0, 1)

        cut_queries = queries._replace(q=cut(queries.q), rope=cut(queries.rope))
        o = self._attend(cut_queries, Keys(*(cut(x) for x in keys)), None)
        return o.unflatten(0, (-1, (hi - lo) // width)).flatten(1, 2)

    @staticmethod
    def _attend(queries: Queries, keys: Keys, documents: Documents | None) -> torch.Tensor:
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "documents": documents}
        return full_attention(queries.q, keys.k, keys.v, **parts, **queries.scores)

    def _chunks(self, documents: Documents) -> Documents:
        """Each chunk of a document as a document."""
        position_BT = documents.position_BT
        start_BT = documents.start_BT + position_BT - position_BT % self.chunk
        return Documents(start_BT, documents.max_documents + position_BT.shape[1] // self.chunk)

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
        """Slots are read as they are if all tokens are kept, or if one new token comes to a ring of one chunk, whose
        slots are the places in the chunk; otherwise the tokens before the new ones are laid out in order."""
        chunk = self.chunk
        inside_BT = step.once(("inside", chunk), lambda: step.positions_BT % chunk)
        if not source.ring:
            keys, end_BT = source.keys, source.end_BT
            first_BT = step.positions_BT - inside_BT
        elif step.seq_len == 1 and source.tokens.capacity == chunk:
            keys, first_BT, end_BT = source.keys, step.zeros_BT, inside_BT + 1
        else:
            keys = source.projection.cached_keys(source.recent(chunk - 1))
            end_BT = step.positions_BT + 1 - (step.start_B[:, None] - (chunk - 1))
            first_BT = end_BT - 1 - inside_BT
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, **queries.scores}
        return Attended(cached_attention(queries.q, keys.k, keys.v, first_BT, end_BT, **parts)[0])
