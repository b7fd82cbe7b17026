"""Grouped-query projection (Ainslie 2023, arXiv 2305.13245): K = H is multi-head attention, K = 1 multi-query."""

import torch
from torch import nn

from zoo.blocks.config import GQA
from zoo.blocks.parts import Context, Entries, Keys, Queries, RMSNorm, linear


class KeyValue(nn.Module):
    """One set of keys and values: x_BTC -> key_BTKD, value_BTKV, with QK-norm where asked."""

    def __init__(self, config: GQA, d_model: int):
        super().__init__()
        self.n_kv_heads = config.n_kv_heads
        self.key = linear(d_model, config.n_kv_heads * config.head_dim)
        self.value = linear(d_model, config.n_kv_heads * config.v_head_dim)
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTC: torch.Tensor) -> Entries:
        key_BTKD = self.key_norm(self.key(x_BTC).unflatten(-1, (self.n_kv_heads, -1)))
        return {"key": key_BTKD, "value": self.value(x_BTC).unflatten(-1, (self.n_kv_heads, -1))}


class GQAProjection(nn.Module):
    """q = W_Q x, k = W_K x, v = W_V x; rotary embedding over the whole of q and k. Cached: rotated k, and v.

    With n_kv_sets > 1 each pattern of the block has its own W_K and W_V; the queries are shared (NSA, section 3.3.3).
    """

    def __init__(self, config: GQA, d_model: int, n_kv_sets: int = 1):
        super().__init__()
        self.config = config
        self.query = linear(d_model, config.n_heads * config.head_dim)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_value = nn.ModuleList(KeyValue(config, d_model) for _ in range(n_kv_sets))

    def queries(self, x_BTC: torch.Tensor, context: Context) -> Queries:
        q_BTHD = self.query_norm(self.query(x_BTC).unflatten(-1, (self.config.n_heads, -1)))
        table = context.rope(self.config.head_dim, self.config, q_BTHD.dtype)
        return Queries(table.rotate(q_BTHD), None, self.config.qk_dim**-0.5)

    def entries(self, x_BTC: torch.Tensor) -> list[Entries]:
        return [key_value(x_BTC) for key_value in self.key_value]

    def rotate(self, entries: Entries, context: Context, blocks: tuple[int, int] | None = None) -> Entries:
        table = context.rope(self.config.head_dim, self.config, entries["key"].dtype, blocks)
        return entries | {"key": table.rotate(entries["key"])}

    def expand(self, entries: Entries) -> Keys:
        return Keys(entries["key"], entries["value"], None)

    def absorb(self, queries: Queries) -> Queries:
        return queries

    def cached_keys(self, entries: Entries) -> Keys:
        return self.expand(entries)

    def lift(self, o_BTHV: torch.Tensor) -> torch.Tensor:
        return o_BTHV

    def renew(self) -> None:
        pass
