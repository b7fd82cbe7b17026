"""The attention module of every kind of block: a projection, patterns, a gate between them, an output projection.

Shape suffixes of blocks/:
    B batch, T tokens, C model width, H query heads, K key/value heads, D content width of a head, V value width,
    R rotary width (of a latent: its channels), J latent heads, N compression slots (of a cache: its slots), L tokens of
    a block, M blocks, G groups of queries, S chosen blocks, P patterns.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from zoo.blocks.cache import AttentionCache, CachedSource
from zoo.blocks.config import AttentionConfig
from zoo.blocks.context import Context, Step
from zoo.blocks.interface import Attended, CutsInPlace, GivesEachPattern
from zoo.blocks.making import PartError, check_methods, is_own, make_module
from zoo.blocks.parts import Entries, Queries, Source, linear
from zoo.blocks.patterns.base import PatternConfig
from zoo.blocks.projections.base import ResolvedProjection
from zoo.blocks.resolved import ResolvedAttention
from zoo.kernels import gated_sum

__all__ = ["Attention", "Context", "Step"]


class Attention(nn.Module):
    """y = W_O sum over patterns of sigmoid(W_G x) * pattern(q, k, v); one gate for each token, head and pattern.

    A block with one pattern has no gate. With `output_gate`, the sum is multiplied by sigmoid(W_OG x) before W_O, as in
    Qwen3-Next (arXiv 2505.06708). `output` is W_O, which writes to the residual stream. The patterns and the
    projection are run through the interfaces of blocks/interface.py; their names mean nothing here.
    """

    def __init__(self, config: AttentionConfig | ResolvedAttention, d_model: int):
        super().__init__()
        point = config.point(d_model)
        projection, n_patterns = point.projection, len(point.patterns)
        self.config = point
        what = f"projection {projection.kind!r}"
        self.projection = make_module(what, projection.module, projection, d_model, point.n_kv_sets)
        if isinstance(self.projection, GivesEachPattern):
            self.projection.n_patterns = n_patterns
        if isinstance(self.projection, CutsInPlace):
            self.projection.patterns_keep_queries = any(
                pattern.keeps_queries and is_own(pattern.module) for pattern in point.patterns
            )
        self.patterns = nn.ModuleDict({one.kind: _made_pattern(one, projection) for one in point.patterns})
        self.gate = linear(d_model, point.gates, point.gate_bias) if n_patterns > 1 else None
        self.output_gate = linear(d_model, point.output_gates) if point.output_gates else None
        self.output = linear(projection.n_heads * projection.v_head_dim, d_model, point.output_bias)
        self._order = [pattern.kind for pattern in point.in_order]
        self.kv_layer: int | None = None  # the layer that makes the keys and values, where several share them

    def forward(
        self, x_BTC: torch.Tensor, context: Context | Step, cache: AttentionCache | None = None
    ) -> torch.Tensor:
        """x_BTC: [B, T, C] floating; `context` made for the same B and T. Returns y_BTC.

        With a cache, x are the tokens that a Step (the context) appends to it; they see those it holds.
        """
        outputs = self.attend(x_BTC, context, cache)
        o_BTHV = outputs[0]
        if self.gate is not None:
            gate_BTHP = self.gate(x_BTC).unflatten(-1, (-1, len(outputs)))
            o_BTHV = gated_sum(outputs, gate_BTHP)
        return self.output(self._gated(o_BTHV, x_BTC).flatten(-2))

    def _gated(self, o_BTHV: torch.Tensor, x_BTC: torch.Tensor) -> torch.Tensor:
        """o times the sigmoid of `output_gate`, one a head or one a channel."""
        if self.output_gate is None:
            return o_BTHV
        gate_BTH_ = self.output_gate(x_BTC).unflatten(-1, (o_BTHV.shape[2], -1))
        return gated_sum([o_BTHV], gate_BTH_) if gate_BTH_.shape[-1] == 1 else o_BTHV * gate_BTH_.sigmoid()

    def new_cache(self, batch: int, max_len: int, device=None, dtype=None) -> AttentionCache:
        """An empty cache for `batch` rows of up to max_len tokens; by default of torch's device and dtype."""
        for kind, module in self.patterns.items():
            check_methods(f"pattern {kind!r}, which is to read a cache,", module, ("keep", "cached"))
        return AttentionCache.empty(self.config, batch, max_len, device, dtype)

    def attend(
        self, x_BTC: torch.Tensor, context: Context | Step, cache: AttentionCache | None = None
    ) -> list[torch.Tensor]:
        """The output o_BTHV of each pattern, before the gate."""
        if x_BTC.shape[1] != context.positions_BT.shape[1]:
            found = f"{x_BTC.shape[1]}, the context is for {context.positions_BT.shape[1]}"
            raise ValueError(f"attention: x must have as many tokens as the context; found {found}")
        queries, raw = self.projection(x_BTC, context)
        if cache is None:
            return self._attend(queries, raw, context, None)
        assert isinstance(context, Step), "tokens are appended to a cache by a Step"
        return (
            self._attend(queries, raw, context, cache) if context.fresh else self._append(queries, raw, context, cache)
        )

    def _sources(self, context: Context | Step, make: Callable[[], list]) -> list:
        """The sets of keys and values: those of an earlier layer, or make(), which later layers may read."""
        if self.config.follows:
            assert self.kv_layer is not None, "the layer says whose keys and values it reads"
            return context.shared(self.kv_layer)
        sources = make()
        if self.kv_layer is not None:
            context.share(self.kv_layer, sources)
        return sources

    def _attend(
        self, queries: Queries, raw: list[Entries], context: Context | Step, cache: AttentionCache | None
    ) -> list[torch.Tensor]:
        """`attend` within the tokens of x; a cache keeps what they leave."""
        sources = self._sources(context, lambda: [Source(self.projection, entries, context) for entries in raw])
        source = self._by_pattern(sources)
        read_by = {kind: self._read_by(kind, queries.of_pattern(i)) for i, kind in enumerate(self._order)}
        results = self._run(lambda kind, module, done: module(read_by[kind], source[kind], context, done))
        if cache is not None and not self.config.follows:
            assert isinstance(context, Step)
            self.projection.renew()
            for one, kept in zip(sources, cache.sets, strict=True):
                kept.tokens.append(one.cached, context)
            for kind, module in cast(Mapping[str, Any], self.patterns).items():
                module.keep(cache.buffers[kind], source[kind], results[kind], context)
        return [results[kind].output for kind in self.patterns]

    @torch.no_grad()
    def _append(self, queries: Queries, raw: list[Entries], step: Step, cache: AttentionCache) -> list[torch.Tensor]:
        """`attend` of tokens that follow others, by what the cache holds of those."""
        dtype = queries.q.dtype  # under autocast not that of the cache

        def append() -> list[CachedSource]:
            pairs = zip(raw, cache.sets, strict=True)
            return [CachedSource(self.projection, entries, step, kept) for entries, kept in pairs]

        sources = self._sources(step, append)
        projection = sources[0].projection  # that of the layer that made the keys
        queries = projection.absorb(queries).to(sources[0].dtype)
        source = self._by_pattern(sources)
        results = self._run(
            lambda kind, module, done: module.cached(
                self._read_by(kind, queries), source[kind], step, done, cache.buffers[kind]
            )
        )
        return [projection.lift(results[kind].output.to(dtype)) for kind in self.patterns]

    def _run(self, attend: Callable[[str, Any, Mapping[str, Attended]], Attended]) -> dict[str, Attended]:
        """The result of each pattern, those that others need first."""
        results: dict[str, Attended] = {}
        for kind in self._order:
            results[kind] = attend(kind, self.patterns[kind], results)
        return results

    def _read_by(self, kind: str, queries: Queries) -> Queries:
        """The queries for a pattern; contiguous for those of other packages, which may call `view`."""
        return queries if is_own(type(self.patterns[kind])) else queries.contiguous()

    def _by_pattern(self, sources: list) -> dict[str, Any]:
        """The source of each pattern: its own, or the one that all share."""
        return dict(zip(self.patterns, sources * (len(self.patterns) // len(sources)), strict=True))


def _made_pattern(config: PatternConfig, projection: ResolvedProjection) -> nn.Module:
    what = f"pattern {config.kind!r}"
    module = make_module(what, config.module, config, projection)
    if not is_own(type(module)):
        module.register_forward_hook(partial(_check_attended, what))
    return module


def _check_attended(what: str, module: nn.Module, arguments: tuple, result: Any) -> None:
    """Raise PartError unless a pattern of another package returns what the block reads."""
    asked, output = list(arguments[0].q.shape[:-1]), getattr(result, "output", None)
    if isinstance(output, torch.Tensor) and list(output.shape[:-1]) == asked:
        return
    found = f"an output {list(output.shape)}" if isinstance(output, torch.Tensor) else type(result).__name__
    must = f"must return a zoo.blocks.parts.Attended whose output has the shape {asked} + [v_head_dim]"
    raise PartError(f"{what}: {type(module).__name__}.forward {must}; found {found}")
