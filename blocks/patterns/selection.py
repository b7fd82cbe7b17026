"""The tokens of the most important blocks (NSA, arXiv 2502.11089, eq. 8-12)."""

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, LayerCache, Step
from zoo.blocks.config import Projection, Selection
from zoo.blocks.parts import Context, Queries, Source
from zoo.blocks.patterns.compression import Compressed
from zoo.kernels import cached_choose_blocks, cached_selection_attention, choose_blocks, selection_attention


class SelectionPattern(nn.Module):
    """Query t sees the keys up to its own in `n_selected` blocks, chosen by what compression attended to.

    The first and the latest blocks are always among them; `query_group` queries share a choice. No gradient flows
    through the choice.
    """

    def __init__(self, config: Selection, projection: Projection):
        super().__init__()
        self.config, self.n_kv_heads = config, projection.n_kv_heads

    def choose(self, queries: Queries, context: Context, compressed: Compressed) -> torch.Tensor:
        """chosen_BGKS: the blocks of each run of query_group queries, for each key head."""
        return choose_blocks(
            queries.q,
            compressed.keys.k,
            compressed.lse,
            query_group=self.config.query_group,
            q_rope=queries.rope,
            k_rope_BNR=compressed.keys.rope,
            n_selected=self.config.n_selected,
            scale=queries.scale,
            documents=context.documents,
            **self._grid(compressed),
        )

    def forward(self, queries: Queries, source: Source, context: Context, chosen_BGKS: torch.Tensor) -> torch.Tensor:
        """o_BTHV of the blocks that `choose` chose."""
        keys = source.keys
        return selection_attention(
            queries.q,
            keys.k,
            keys.v,
            chosen_BGKS,
            selection_block=self.config.selection_block,
            query_group=self.config.query_group,
            q_rope=queries.rope,
            k_rope=keys.rope,
            scale=queries.scale,
            documents=context.documents,
        )

    def cached(
        self, queries: Queries, source: CachedSource, step: Step, compressed: Compressed, cache: LayerCache
    ) -> torch.Tensor:
        """The choice of a group of queries that began in an earlier step comes from the cache."""
        keys, config = source.keys, self.config
        parts = {"q_rope": queries.rope, "scale": queries.scale}
        chosen_BTKS = cached_choose_blocks(
            queries.q,
            compressed.keys.k,
            compressed.lse,
            step.positions_BT,
            self._previous(cache, step),
            query_group=config.query_group,
            k_rope_BNR=compressed.keys.rope,
            **self._grid(compressed),
            **parts,
        )
        cache.keep_choice(chosen_BTKS, step)
        return cached_selection_attention(
            queries.q,
            keys.k,
            keys.v,
            chosen_BTKS,
            step.positions_BT,
            selection_block=config.selection_block,
            k_rope_BNR=keys.rope,
            **parts,
        )

    def _grid(self, compressed: Compressed) -> dict[str, int]:
        config = self.config
        return {
            "compression_block": compressed.block,
            "compression_stride": compressed.stride,
            "selection_block": config.selection_block,
            "n_init": config.n_init,
            "n_local": config.n_local,
        }

    def _previous(self, cache: LayerCache, step: Step) -> torch.Tensor:
        """The latest choice; where each query has its own, something of its shape that nobody reads."""
        if cache.chosen_BKS is not None:
            return cache.chosen_BKS
        shape = len(step.start_B), self.n_kv_heads, self.config.n_selected
        return step.once(shape, lambda: torch.full(shape, -1, device=step.start_B.device, dtype=torch.int32))
