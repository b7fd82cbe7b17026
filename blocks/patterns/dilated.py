"""Every `dilation`-th key before the query, as a plain window in rows of tokens that are `dilation` apart."""

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Attended, Queries, Source
from zoo.blocks.patterns.dilated_config import Dilated
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import Documents, cached_attention, window_attention


class DilatedPattern(nn.Module):
    """Query t sees the keys t, t - dilation, ..., `n_keys` of them (arXiv 2004.05150).

    Tokens t with the same t mod dilation are put in one row; there the pattern is a window of n_keys, for which there
    are kernels. A row is T / dilation long, so no work is done for keys that are not seen.
    """

    def __init__(self, config: Dilated, projection: ResolvedProjection):
        super().__init__()
        self.n_keys, self.dilation, self.before = config.n_keys, config.dilation, config.before

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Attended:
        keys, seq_len = source.keys, queries.q.shape[1]
        rows = min(self.dilation, seq_len)
        q, k, v = (self._split(x, rows) for x in (queries.q, keys.k, keys.v))
        parts = {"q_rope": self._split(queries.rope, rows), "k_rope": self._split(keys.rope, rows), **queries.scores}
        documents = self._split_documents(context.documents, rows)
        o = window_attention(q, k, v, window=self.n_keys, documents=documents, **parts)
        return Attended(self._joined(o, rows, seq_len))

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
        """The tokens before the new ones are laid out in order, from `before` tokens back, and split alike.

        `before` is a multiple of the dilation, so a new token and its keys fall in the same row.
        """
        rows, device = min(self.dilation, step.seq_len), step.start_B.device
        entries = {name: self._split(x, rows) for name, x in source.recent(self.before).items()}
        keys = source.projection.cached_keys(entries)
        q = self._split(queries.q, rows)
        first_new = torch.arange(q.shape[1], device=device)  # where the window of each new token begins in its row
        row_R = torch.arange(rows, device=device)
        too_early_BR = (self.before - step.start_B[:, None] - row_R).clamp(min=0)  # positions below 0 hold nothing
        held_N1 = -(-too_early_BR.flatten() // self.dilation)[:, None]
        end_NT = (first_new + self.n_keys).expand(len(q), -1)
        first_NT = torch.maximum(first_new[None], held_N1).clamp(max=end_NT)
        parts: dict[str, Any] = {"q_rope": self._split(queries.rope, rows), "k_rope": keys.rope, **queries.scores}
        o = cached_attention(q, keys.k, keys.v, first_NT, end_NT.contiguous(), **parts)[0]
        return Attended(self._joined(o, rows, step.seq_len))

    @overload
    def _split(self, x: torch.Tensor, rows: int) -> torch.Tensor: ...
    @overload
    def _split(self, x: torch.Tensor | None, rows: int) -> torch.Tensor | None: ...
    def _split(self, x: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        """[B, T, ...] -> [B * rows, ceil(T / dilation), ...]: row r holds the tokens t with t mod dilation = r."""
        if x is None:
            return None
        tail = -x.shape[1] % self.dilation
        padded = torch.cat((x, x.new_zeros(len(x), tail, *x.shape[2:])), 1) if tail else x
        return padded.unflatten(1, (-1, self.dilation))[:, :, :rows].transpose(1, 2).flatten(0, 1).contiguous()

    def _joined(self, x: torch.Tensor, rows: int, seq_len: int) -> torch.Tensor:
        """The inverse of `_split`: [B * rows, N, ...] -> [B, seq_len, ...]."""
        return x.unflatten(0, (-1, rows)).transpose(1, 2).flatten(1, 2)[:, :seq_len]

    def _split_documents(self, documents: Documents | None, rows: int) -> Documents | None:
        """The documents of each row: one begins at the first of its tokens that falls in the row."""
        if documents is None:
            return None
        is_start = self._split(documents.position_BT < self.dilation, rows)
        return Documents.from_starts(is_start, documents.max_documents + 1)  # padding may count as one more
