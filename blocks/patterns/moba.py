"""The tokens of the query's own block and of past blocks chosen by their mean keys (MoBA, arXiv 2502.13189)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.interface import Attended
from zoo.blocks.parts import Entries, Queries, Source
from zoo.blocks.patterns.moba_config import UNREAD, MoBA
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import (
    cached_attention,
    cached_choose_blocks,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    mean_pool,
    selection_attention,
)


class Chosen(NamedTuple):
    """Attention to the chosen blocks: output o_BTHV; pooled: what a cache keeps of them."""

    output: torch.Tensor
    pooled: Entries


class MoBAPattern(nn.Module):
    """Query t sees the keys up to its own in its own block and in those past blocks whose mean keys it likes best.

    It has no parameters, and no gradient flows through the choice. What is pooled, and cached, is what keys are made
    of: keys, or each latent head and the rotary key.
    """

    def __init__(self, config: MoBA, projection: ResolvedProjection):
        super().__init__()
        self.config, self.n_kv_heads = config, projection.n_kv_heads
        self.names = list(projection.key_entries())
        block = config.selection_block
        self.grid = {"compression_block": block, "compression_stride": block, "selection_block": block}
        self.grid |= {"n_init": config.n_init, "n_local": config.n_local}

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Chosen:
        keys = source.keys
        pooled, chosen_BTKS = self._choose(queries, source, context)
        output = selection_attention(
            queries.q,
            keys.k,
            keys.v,
            self._in_pieces(chosen_BTKS),
            selection_block=self.config.selection_block // self.config.pieces,
            q_rope=queries.rope,
            k_rope=keys.rope,
            scale=queries.scale,
            documents=context.documents,
        )
        return Chosen(output, pooled)

    @torch.no_grad()
    def _choose(self, queries: Queries, source: Source, context: Context | Step) -> tuple[Entries, torch.Tensor]:
        """(the means of the blocks, chosen_BTKS)."""
        block = self.config.selection_block
        entries = [source.cached[name].detach() for name in self.names]
        means = mean_pool(entries, block=block, stride=block, documents=context.documents)
        pooled = dict(zip(self.names, means, strict=True))
        keys = source.projection.expand(self._complete(pooled, source.raw))
        unread_BNKV = keys.k.new_zeros(*keys.k.shape[:3], UNREAD)
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "scale": queries.scale}
        parts["documents"] = context.documents
        _, lse_BTH = compression_attention(queries.q, keys.k, unread_BNKV, block=block, stride=block, **parts)
        n_selected = self.config.n_selected
        return pooled, choose_blocks(queries.q, keys.k, lse_BTH, n_selected=n_selected, **self.grid, **parts)

    @staticmethod
    def _complete(pooled: Entries, raw: Entries) -> Entries:
        """All entries that a projection reads; nobody reads the values that are made of those that are not pooled."""
        first = next(iter(pooled.values()))
        missing = {name: first for name in raw if name not in pooled}
        return {**pooled, **missing}

    def keep(self, buffers: Mapping[str, Slots], source: Source, result: Any, step: Step) -> None:
        buffers["pooled"].write_first(result.pooled)

    def cached(
        self,
        queries: Queries,
        source: CachedSource,
        step: Step,
        results: Mapping[str, Attended],
        buffers: Mapping[str, Slots],
    ) -> Chosen:
        """All tokens are kept, because any block may be chosen."""
        pooled, block = buffers["pooled"], self.config.selection_block
        tokens = Slots({name: source.tokens.tensors[name] for name in self.names})
        pooled.write_means(tokens, step, block, block)
        keys = source.projection.cached_keys(self._complete(pooled.tensors, source.raw))
        end_BT = step.once(
            ("mean keys", block, pooled.capacity),
            lambda: ((step.positions_BT + 1) // block).clamp(0, pooled.capacity),
        )
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "scale": queries.scale}
        _, lse_BTH = cached_attention(queries.q, keys.k, keys.v, step.zeros_BT, end_BT, **parts)
        shape = len(step.start_B), self.n_kv_heads, self.config.n_selected
        unread_BKS = step.once(shape, lambda: torch.full(shape, -1, device=step.start_B.device, dtype=torch.int32))
        chosen_BTKS = cached_choose_blocks(
            queries.q, keys.k, lse_BTH, step.positions_BT, unread_BKS, **self.grid, **parts
        )
        all_keys = source.keys
        output = cached_selection_attention(
            queries.q,
            all_keys.k,
            all_keys.v,
            self._in_pieces(chosen_BTKS),
            step.positions_BT,
            selection_block=block // self.config.pieces,
            q_rope=queries.rope,
            k_rope=all_keys.rope,
            scale=queries.scale,
        )
        return Chosen(output, pooled.tensors)

    def _in_pieces(self, chosen_BTKS: torch.Tensor) -> torch.Tensor:
        """The same tokens as blocks that the kernels take: each block as `pieces` consecutive ones."""
        pieces = self.config.pieces
        if pieces == 1:
            return chosen_BTKS
        piece_P = torch.arange(pieces, device=chosen_BTKS.device, dtype=torch.int32)
        first_BTKS1 = chosen_BTKS[..., None]
        return torch.where(first_BTKS1 < 0, first_BTKS1, first_BTKS1 * pieces + piece_P).flatten(-2)
