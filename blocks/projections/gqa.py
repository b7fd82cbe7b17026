"""Grouped-query projection (Ainslie 2023, arXiv 2305.13245): K = H is multi-head attention, K = 1 multi-query."""

import torch
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Entries, Keys, Queries, RMSNorm, linear
from zoo.blocks.projections.gqa_config import ResolvedGQA


class GQAProjection(nn.Module):
    """q = W_Q x, k = W_K x, v = W_V x; rotary embedding over the whole of q and k. Cached: rotated k, and v.

    With n_kv_sets > 1 each pattern of the block has its own W_K and W_V; the queries are shared (NSA, section 3.3.3).
    input: [W_Q ; W_K ; W_V], with more sets W_K and W_V of each in turn; in each, rows by head.
    """

    def __init__(self, config: ResolvedGQA, d_model: int, n_kv_sets: int = 1):
        super().__init__()
        self.config = config
        of_set = [config.n_kv_heads * config.head_dim, config.n_kv_heads * config.v_head_dim]
        self.widths = [config.n_heads * config.head_dim, *of_set * n_kv_sets]
        self.input = linear(d_model, sum(self.widths))
        self.query_norm = self._norm()
        self.key_norms = nn.ModuleList(self._norm() for _ in range(n_kv_sets))

    def _norm(self) -> nn.Module:
        return RMSNorm(self.config.head_dim, self.config.norm_eps) if self.config.qk_norm else nn.Identity()

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> tuple[Queries, list[Entries]]:
        config = self.config
        query, *key_value = self.input(x_BTC).split(self.widths, dim=-1)
        q_BTHD = self.query_norm(query.unflatten(-1, (config.n_heads, -1)))
        table = context.rope(config.head_dim, config, q_BTHD.dtype)
        heads = [x.unflatten(-1, (config.n_kv_heads, -1)) for x in key_value]
        sets = zip(self.key_norms, heads[::2], heads[1::2], strict=True)
        entries = [{"key": norm(key_BTKD), "value": value_BTKV} for norm, key_BTKD, value_BTKV in sets]
        return Queries(table.rotate(q_BTHD), None, config.qk_dim**-0.5), entries

    def rotate(self, entries: Entries, context: Context | Step, blocks: tuple[int, int] | None = None) -> Entries:
        table = context.rope(self.config.head_dim, self.config, entries["key"].dtype, blocks)
        return entries | {"key": table.rotate(entries["key"])}

    def expand(self, entries: Entries) -> Keys:
        """Values are copied: a view of them would hold the whole product until the backward pass."""
        return Keys(entries["key"], entries["value"].contiguous(), None)

    def absorb(self, queries: Queries) -> Queries:
        return queries

    def cached_keys(self, entries: Entries) -> Keys:
        return Keys(entries["key"], entries["value"], None)

    def lift(self, o_BTHV: torch.Tensor) -> torch.Tensor:
        return o_BTHV

    def renew(self) -> None:
        pass
