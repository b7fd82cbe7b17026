"""The tokens of the most important blocks (NSA, arXiv 2502.11089, eq. 8-12)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Queries, Source
from zoo.blocks.patterns.compression import Compressed
from zoo.blocks.patterns.selection_config import Selection
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import cached_choose_blocks, cached_selection_attention, choose_blocks, selection_attention


class Selected(NamedTuple):
    """Attention to the chosen blocks: output o_BTHV; chosen_BGKS, one choice for each group of queries and key head."""

    output: torch.Tensor
    chosen: torch.Tensor


class SelectionPattern(nn.Module):
    """Query t sees the keys up to its own in `n_selected` blocks, chosen by what compression attended to.

    The first and the latest blocks are always among them; `query_group` queries share a choice. No gradient flows
    through the choice.
    """

    def __init__(self, config: Selection, projection: ResolvedProjection):
        super().__init__()
        self.config, self.n_kv_heads = config, projection.n_kv_heads

    def choose(self, queries: Queries, context: Context | Step, compressed: Compressed) -> torch.Tensor:
        """chosen_BGKS: the blocks of each run of query_group queries, for each key head."""
        return choose_blocks(
            queries.q,
            compressed.keys.k,
            compressed.lse,
            query_group=self.config.query_group,
            q_rope=queries.rope,
            k_rope=compressed.keys.rope,
            n_selected=self.config.n_selected,
            scale=queries.scale,
            documents=context.documents,
            **self._grid(compressed),
        )

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Compressed]
    ) -> Selected:
        chosen_BGKS = self.choose(queries, context, results["compression"])
        keys = source.keys
        output = selection_attention(
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
        return Selected(output, chosen_BGKS)

    def keep(self, buffers: Mapping[str, Slots], source: Source, result: Selected, step: Step) -> None:
        if buffers:
            self._keep_latest(buffers["choice"], result.chosen, step, self.config.query_group)

    def cached(
        self,
        queries: Queries,
        source: CachedSource,
        step: Step,
        results: Mapping[str, Compressed],
        buffers: Mapping[str, Slots],
    ) -> Selected:
        """The choice of a group of queries that began in an earlier step comes from the cache."""
        compressed, keys, config = results["compression"], source.keys, self.config
        parts = {"q_rope": queries.rope, "scale": queries.scale}
        chosen_BTKS = cached_choose_blocks(
            queries.q,
            compressed.keys.k,
            compressed.lse,
            step.positions_BT,
            self._previous(buffers, step),
            query_group=config.query_group,
            k_rope=compressed.keys.rope,
            **self._grid(compressed),
            **parts,
        )
        if buffers:
            self._keep_latest(buffers["choice"], chosen_BTKS, step)
        output = cached_selection_attention(
            queries.q,
            keys.k,
            keys.v,
            chosen_BTKS,
            step.positions_BT,
            selection_block=config.selection_block,
            k_rope=keys.rope,
            **parts,
        )
        return Selected(output, chosen_BTKS)

    def _grid(self, compressed: Compressed) -> dict[str, int]:
        config = self.config
        return {
            "compression_block": compressed.block,
            "compression_stride": compressed.stride,
            "selection_block": config.selection_block,
            "n_init": config.n_init,
            "n_local": config.n_local,
        }

    def _previous(self, buffers: Mapping[str, Slots], step: Step) -> torch.Tensor:
        """The latest choice; if each query has its own, a tensor of the same shape that is not read."""
        if buffers:
            return buffers["choice"].tensors["chosen"]
        shape = len(step.start_B), self.n_kv_heads, self.config.n_selected
        return step.once(shape, lambda: torch.full(shape, -1, device=step.start_B.device, dtype=torch.int32))

    @staticmethod
    def _keep_latest(choice: Slots, chosen_BGKS: torch.Tensor, step: Step, query_group: int = 1) -> None:
        """Keep the choice of the last new token of each row; a row without a new token keeps what it had.

        chosen_BGKS: one choice for each run of query_group new tokens.
        """
        if step.n_new_B is None:
            choice.replace({"chosen": chosen_BGKS[:, (step.seq_len - 1) // query_group]})
            return
        row_B = torch.arange(len(chosen_BGKS), device=chosen_BGKS.device)
        latest_BKS = chosen_BGKS[row_B, (step.n_new_B - 1).clamp(min=0) // query_group]
        choice.replace({"chosen": latest_BKS}, step.n_new_B > 0)
