"""The tokens of the most important blocks (NSA, arXiv 2502.11089, eq. 8-12)."""

import torch
from torch import nn

from zoo.blocks.config import Selection
from zoo.blocks.parts import Context, Queries, Source
from zoo.blocks.patterns.compression import Compressed
from zoo.kernels import choose_blocks, selection_attention


class SelectionPattern(nn.Module):
    """Query t sees the keys up to its own in `n_selected` blocks, chosen by what compression attended to.

    The first and the latest blocks are always among them; `query_group` queries share a choice. No gradient flows
    through the choice.
    """

    def __init__(self, config: Selection, entries: dict[str, tuple[int, ...]]):
        super().__init__()
        self.config = config

    def forward(self, queries: Queries, source: Source, context: Context, compressed: Compressed) -> torch.Tensor:
        keys, config = source.keys, self.config
        common = {
            "selection_block": config.selection_block,
            "query_group": config.query_group,
            "q_rope": queries.rope,
            "scale": queries.scale,
            "documents": context.documents,
        }
        chosen_BGKS = choose_blocks(
            queries.q,
            compressed.keys.k,
            compressed.lse,
            k_rope_BNR=compressed.keys.rope,
            compression_block=compressed.block,
            compression_stride=compressed.stride,
            n_selected=config.n_selected,
            n_init=config.n_init,
            n_local=config.n_local,
            **common,
        )
        return selection_attention(queries.q, keys.k, keys.v, chosen_BGKS, k_rope=keys.rope, **common)
