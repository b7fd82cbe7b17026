"""Grouped-query projection (Ainslie 2023, arXiv 2305.13245): K = H is multi-head attention, K = 1 multi-query."""

import torch
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Entries, Keys, Queries, RMSNorm, WidthNorm, linear, query_readers, sinks
from zoo.blocks.projections.gqa_config import ResolvedGQA
from zoo.kernels import Heads, Piece, split_heads


class GQAProjection(nn.Module):
    """q = W_Q x, k = W_K x, v = W_V x; rotary embedding on q and k. Cached: rotated k, and v.

    With n_kv_sets > 1 each pattern of the block has its own W_K and W_V; the queries are shared (NSA, section 3.3.3).
    input: [W_Q ; W_K ; W_V], with more sets W_K and W_V of each in turn; in each, rows by head.
    """

    def __init__(self, config: ResolvedGQA, d_model: int, n_kv_sets: int = 1):
        super().__init__()
        self.config, self.n_patterns = config, 1
        of_set = [config.n_kv_heads * config.head_dim, config.n_kv_heads * config.v_head_dim]
        self.widths = [config.n_heads * config.head_dim, *of_set * n_kv_sets]
        self.input = linear(d_model, sum(self.widths), config.qkv_bias)
        self.sinks = sinks(config.n_heads, config.sinks)
        self.position = config.position.build()
        self.norms_rotated = config.qk_norm_place == "after"
        self.query_norm = self._norm(config.n_heads)
        self.key_norms = nn.ModuleList(self._norm(config.n_kv_heads) for _ in range(n_kv_sets))

    def _norm(self, n_heads: int) -> nn.Module:
        config = self.config
        if not config.qk_norm:
            return nn.Identity()
        if config.qk_norm_over == "width":
            return WidthNorm(n_heads * config.head_dim, config.norm_eps, config.qk_norm_scale)
        return RMSNorm(config.head_dim, config.norm_eps, learned=config.qk_norm_scale)

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> tuple[Queries, list[Entries]]:
        config, made = self.config, self.input(x_BTC)
        norm_first = config.qk_norm and not self.norms_rotated
        rotary = 0 if norm_first else config.rotary_dim
        table = context.rope(rotary, self.position, made.dtype) if rotary else None
        tables = (table.cos_BTR, table.sin_BTR) if table else ()
        n = 1 if config.qk_norm else query_readers(self)
        parts = split_heads(made, self._groups(rotary, n), *tables)
        q_BTHD, heads = parts[0], parts[n:]
        each = tuple((q, None) for q in parts[:n]) if n > 1 else ()
        if norm_first:
            q_BTHD = self._rotate(self.query_norm(q_BTHD), context, keys=False)
        elif config.qk_norm:
            q_BTHD = self.query_norm(q_BTHD)
        sets = zip(self.key_norms, heads[::2], heads[1::2], strict=True)
        entries = [
            {"key": norm(key_BTKD) if norm_first else key_BTKD, "value": value_BTKV}
            for norm, key_BTKD, value_BTKV in sets
        ]
        queries = Queries(q_BTHD, None, config.scale, self.sinks, config.score_softcap, each)
        return queries.tempered(config.position_temperature, context), entries

    def _groups(self, rotary: int, n_readers: int) -> tuple[Heads, ...]:
        """What `input` makes. Keys are copied by their norm or rotation if there is one, and values by the split."""
        config = self.config
        key = Heads(config.n_kv_heads, (Piece(config.head_dim, view=True),))
        value = Heads(config.n_kv_heads, (Piece(config.v_head_dim),))
        query = Heads(config.n_heads, (Piece(config.head_dim, rotary, readers=n_readers),))
        return query, *(key, value) * len(self.key_norms)

    def rotate(self, entries: Entries, context: Context | Step, blocks: tuple[int, int] | None = None) -> Entries:
        """Keys rotated, and normed where the norm comes after; several sets then share it, as the config checks."""
        key_BTKD = self._rotate(entries["key"], context, blocks)
        return entries | {"key": self.key_norms[0](key_BTKD) if self.norms_rotated else key_BTKD}

    def _rotate(
        self, x_BTHD: torch.Tensor, context: Context | Step, blocks: tuple[int, int] | None = None, keys: bool = True
    ) -> torch.Tensor:
        """The first `rotary_dim` channels of each head turned, the others as they are."""
        width = self.config.rotary_dim
        if width == 0:
            return x_BTHD
        table = context.rope(width, self.position, x_BTHD.dtype, blocks, keys)
        if width == x_BTHD.shape[-1]:
            return table.rotate(x_BTHD)
        return torch.cat((table.rotate(x_BTHD[..., :width]), x_BTHD[..., width:]), -1)

    def expand(self, entries: Entries) -> Keys:
        """Views of the product are copied: they would hold the whole of it until the backward pass."""
        return Keys(entries["key"].contiguous(), entries["value"].contiguous(), None)

    def absorb(self, queries: Queries) -> Queries:
        return queries

    def cached_keys(self, entries: Entries) -> Keys:
        return Keys(entries["key"], entries["value"], None)

    def lift(self, o_BTHV: torch.Tensor) -> torch.Tensor:
        return o_BTHV

    def renew(self) -> None:
        pass
