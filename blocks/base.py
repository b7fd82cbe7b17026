"""The attention module of every kind of block: a projection, patterns, a gate between them, an output projection.

Shape suffixes of blocks/:
    B batch, T tokens, C model width, H query heads, K key/value heads, D content width of a head, V value width,
    R rotary width (of a latent: its channels), J latent heads, N compression slots (of a cache: its slots), L tokens of
    a block, M blocks, G groups of queries, S chosen blocks, P patterns.
"""

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, LayerCache, Step
from zoo.blocks.config import AttentionConfig
from zoo.blocks.parts import Context, Entries, Queries, Source, linear
from zoo.blocks.patterns import build_patterns
from zoo.blocks.projections import build_projection
from zoo.kernels import gated_sum

__all__ = ["Attention", "Context"]


class Attention(nn.Module):
    """y = W_O sum over patterns of sigmoid(W_G x) * pattern(q, k, v); one gate for each token, head and pattern.

    A block with one pattern has no gate. `output` is W_O, which writes to the residual stream.
    """

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        config = config.grid_point(d_model)
        heads, n_patterns = config.projection.n_heads, len(config.patterns)
        self.config = config
        self.projection = build_projection(config, d_model)
        self.patterns = build_patterns(config)
        self.gate = linear(d_model, heads * n_patterns) if n_patterns > 1 else None
        self.output = linear(heads * config.projection.v_head_dim, d_model)

    def forward(self, x_BTC: torch.Tensor, context: Context, cache: LayerCache | None = None) -> torch.Tensor:
        """x_BTC: [B, T, C] floating; `context` made for the same B and T. Returns y_BTC.

        With a cache, x are the tokens that a Step (the context) appends to it; they see those it holds.
        """
        outputs = self.attend(x_BTC, context, cache)
        if self.gate is None:
            return self.output(outputs[0].flatten(-2))
        gate_BTHP = self.gate(x_BTC).unflatten(-1, (-1, len(outputs)))
        return self.output(gated_sum(outputs, gate_BTHP).flatten(-2))

    def new_cache(self, batch: int, max_len: int, device=None, dtype=None) -> LayerCache:
        """An empty cache for `batch` rows of up to max_len tokens; by default of torch's device and dtype."""
        return LayerCache.empty(self.config, batch, max_len, device, dtype)

    def attend(self, x_BTC: torch.Tensor, context: Context, cache: LayerCache | None = None) -> list[torch.Tensor]:
        """The output o_BTHV of each pattern, before the gate."""
        if x_BTC.shape[1] != context.positions_BT.shape[1]:
            found = f"{x_BTC.shape[1]}, the context is for {context.positions_BT.shape[1]}"
            raise ValueError(f"attention: x must have as many tokens as the context; found {found}")
        queries, raw = self.projection(x_BTC, context)
        if cache is not None and not context.fresh:
            return self._attend_cached(queries, raw, context, cache)
        queries = queries._replace(q=queries.q.contiguous())
        sources = [Source(self.projection, entries, context) for entries in raw]
        source = self._by_pattern(sources)
        outputs, compressed, chosen_BGKS = {}, None, None
        if "compression" in self.patterns:
            compressed = self.patterns["compression"](queries, source["compression"], context)
            outputs["compression"] = compressed.output
        if "selection" in self.patterns:
            chosen_BGKS = self.patterns["selection"].choose(queries, context, compressed)
            outputs["selection"] = self.patterns["selection"](queries, source["selection"], context, chosen_BGKS)
        for kind in ("full", "window"):
            if kind in self.patterns:
                outputs[kind] = self.patterns[kind](queries, source[kind], context)
        if cache is not None:
            self.projection.renew()
            self._fill(cache, sources, compressed, chosen_BGKS, context)
        return [outputs[kind] for kind in self.patterns]

    @torch.no_grad()
    def _attend_cached(self, queries: Queries, raw: list[Entries], step: Step, cache: LayerCache) -> list[torch.Tensor]:
        """`attend` of tokens that follow others, by what the cache holds of those."""
        dtype = queries.q.dtype  # under autocast not that of the cache
        queries = self.projection.absorb(queries).to(cache.dtype)
        sources = map(CachedSource, [self.projection] * len(raw), raw, [step] * len(raw), cache.sets)
        source = self._by_pattern(list(sources))
        outputs, compressed = {}, None
        if "compression" in self.patterns:
            compressed = self.patterns["compression"].cached(queries, source["compression"], step)
            outputs["compression"] = compressed.output
        if "selection" in self.patterns:
            outputs["selection"] = self.patterns["selection"].cached(
                queries, source["selection"], step, compressed, cache
            )
        for kind in ("full", "window"):
            if kind in self.patterns:
                outputs[kind] = self.patterns[kind].cached(queries, source[kind], step)
        return [self.projection.lift(outputs[kind].to(dtype)) for kind in self.patterns]

    def _by_pattern(self, sources: list) -> dict:
        """The source of each pattern: its own, or the one that all share."""
        return dict(zip(self.patterns, sources * (len(self.patterns) // len(sources)), strict=True))

    def _fill(self, cache: LayerCache, sources: list[Source], compressed, chosen_BGKS, step: Step) -> None:
        """Keep what a fresh step has made of its tokens."""
        for source, kept in zip(sources, cache.sets, strict=True):
            kept.fill(source.cached, source.raw, compressed and compressed.entries, step)
        if chosen_BGKS is not None:
            cache.keep_choice(chosen_BGKS, step, self.patterns["selection"].config.query_group)
