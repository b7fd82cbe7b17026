"""The interface between a model and its blocks, and inside a block between projection, patterns and cache.

These are protocols: a class keeps one by having its methods, without a base class. Nothing here imports torch when the
program runs. Legend of the shape suffixes: blocks/base.py.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, Self, overload, runtime_checkable

if TYPE_CHECKING:
    import torch

    from zoo.blocks.cache import CachedSource, Slots
    from zoo.blocks.context import Context, Step
    from zoo.blocks.parts import Entries, Keys, Queries, Source
    from zoo.blocks.positions.rotary import RopeTable


@runtime_checkable
class LayerCache(Protocol):
    """What one layer keeps of the tokens it has read. All memory is allocated at once and written in place."""

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        ...

    def rows(self, lo: int, hi: int) -> Self:
        """Rows lo .. hi - 1 as a cache in the same memory: long prompts are read a few rows at a time."""
        ...

    def reorder(self, source_B: "torch.Tensor") -> None:
        """Row b becomes a copy of what row source_B[b] held, int64: beam search continues the best rows."""
        ...


class Mixer(Protocol):
    """The module of one layer: mixes tokens.  x_BTC and the result: [batch, tokens, d_model].

    Its initial weights: every nn.Linear is drawn from N(0, init_std^2); the one called `output`, which writes to the
    residual stream, with a smaller deviation. A module with a method `initialise` (`SelfInitialised`) draws its own.
    """

    output: "torch.nn.Module"

    @overload
    def __call__(self, x_BTC: "torch.Tensor", context: "Context") -> "torch.Tensor": ...
    @overload
    def __call__(self, x_BTC: "torch.Tensor", context: "Step", cache: LayerCache) -> "torch.Tensor": ...


@runtime_checkable
class Caching(Protocol):
    """A mixer that can generate: it makes the cache that its calls with a Step append to."""

    def new_cache(
        self, batch: int, max_len: int, device: "torch.device | None" = None, dtype: "torch.dtype | None" = None
    ) -> LayerCache:
        """An empty cache for `batch` rows of up to max_len tokens."""
        ...


@runtime_checkable
class SelfInitialised(Protocol):
    """A module that draws its own initial weights, and those of every module inside it."""

    def initialise(self, generator: "torch.Generator", std: float, residual_std: float) -> None:
        """Draw all weights on the CPU.

        std: the recipe's init_std.  residual_std: for maps that write to the residual stream.
        """
        ...


@runtime_checkable
class AfterBatch(Protocol):
    """A module that does something once after each batch of training, or reports numbers of it."""

    def after_batch(self, total: "Callable[[torch.Tensor], None]") -> "dict[str, torch.Tensor]":
        """Called after the optimiser's step, on every device.

        total: sums a tensor over all devices, in place.  Returns scalars to record, by name; those of one name are
        averaged over the layers.
        """
        ...


@runtime_checkable
class AtDepth(Protocol):
    """A mixer that depends on which layer it is in."""

    def at_depth(self, index: int, n_layers: int) -> None:
        """Called once when a model is built.  index: of the layer, from 0."""
        ...


@runtime_checkable
class GivesEachPattern(Protocol):
    """A projection that can return queries for each pattern (`Queries.each`).

    n_patterns: number of patterns that read its queries; the layer sets it when it is built.
    """

    n_patterns: int


@runtime_checkable
class CutsInPlace(Protocol):
    """A projection whose queries can be views of the product that it makes, instead of copies.

    patterns_keep_queries: whether one of the zoo's own patterns has `PatternConfig.keeps_queries`; the layer sets it
    when it is built. A pattern that keeps a view until the backward pass keeps the whole product.
    """

    patterns_keep_queries: bool


class Positions(Protocol):
    """A position embedding that turns queries and keys. Built as Class(config).

    values, keys_differ: those of the config (`blocks.positions.base.PositionConfig`).
    """

    values: tuple
    keys_differ: bool

    def table(self, positions_BT: "torch.Tensor", dim: int, dtype: "torch.dtype", keys: bool) -> "RopeTable":
        """The table of positions_BT [B or 1, T], whole or not, in dtype, for dim channels.

        keys: whether it is that of keys; always false where keys_differ is.
        """
        ...


class Attended(Protocol):
    """The result of a pattern; patterns that need this one read further attributes of it."""

    @property
    def output(self) -> "torch.Tensor":
        """o_BTHV; with a cache of latents o_BTHR, which `Projection.lift` turns into o_BTHV."""
        ...


class Pattern(Protocol):
    """Which keys a query sees. Built as Class(config, projection) with a resolved config and a resolved projection.

    results: those of the patterns that this one `needs`, by kind.  buffers: the memory of the pattern's own that its
    config states in `buffers`, by name.
    """

    def __call__(
        self, queries: "Queries", source: "Source", context: "Context | Step", results: Mapping[str, Attended]
    ) -> Attended:
        """Attend within whole rows."""
        ...

    def keep(self, buffers: "Mapping[str, Slots]", source: "Source", result: Attended, step: "Step") -> None:
        """Write to the buffers what the first tokens of a cache leave there; tokens themselves are kept already."""
        ...

    def cached(
        self,
        queries: "Queries",
        source: "CachedSource",
        step: "Step",
        results: Mapping[str, Attended],
        buffers: "Mapping[str, Slots]",
    ) -> Attended:
        """Attend from tokens that follow others, by what the cache holds of those; update the buffers.

        queries: absorbed (`Projection.absorb`), so that the entries of the cache are read as they are.
        """
        ...


class Projection(Protocol):
    """How queries, keys and values are made. Built as Class(resolved projection, d_model, number of key/value sets).

    Without sets it makes queries alone: the layer reads the keys and values of an earlier one (`share_kv`).

    The maps of a projection that read x are one, `input`, whose result is cut afterwards: in a decoding step each
    product takes 4 us on an H200, where its weights take 0.7 us to read (docs/log.md).
    """

    def __call__(self, x_BTC: "torch.Tensor", context: "Context | Step") -> "tuple[Queries, list[Entries]]":
        """Rotated queries, and for each set of keys and values its entries, not yet rotated."""
        ...

    def rotate(self, entries: "Entries", context: "Context | Step", blocks: tuple[int, int] | None = None) -> "Entries":
        """What a cache keeps. blocks: (block, stride) if the entries are those of a compression grid."""
        ...

    def expand(self, entries: "Entries") -> "Keys":
        """The keys and values that attention reads."""
        ...

    def absorb(self, queries: "Queries") -> "Queries":
        """q . (W c) = (W^T q) . c: W_UK applied to the queries, so that latents are keys (DeepSeek-V2, 2.1.2)."""
        ...

    def cached_keys(self, entries: "Entries") -> "Keys":
        """Entries of the cache read as keys and values, of J heads."""
        ...

    def lift(self, o_BTHV: "torch.Tensor") -> "torch.Tensor":
        """W_UV, applied after the sum over latents."""
        ...

    def renew(self) -> None:
        """Called at the first tokens of a cache: weights may have changed without a trace."""
        ...
