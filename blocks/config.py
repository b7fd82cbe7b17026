"""What every block config is, and the generic block: one projection and one or more patterns. No torch.

`AttentionConfig` is a point of the grid of BLOCKS.md; every kind in blocks/kinds/ is a shorter spelling of one.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About
from zoo.blocks.cost import Cost, attention_cost
from zoo.blocks.fields import (
    CompressionFields,
    Flag,
    GQAFields,
    GroupedLatentFields,
    Kinded,
    LatentFields,
    Problem,
    RopeFields,
    SelectionFields,
    WindowFields,
    stride_problems,
)


class BlockConfig(Kinded):
    """The config of one kind of block, as a recipe writes it. Blocks from elsewhere subclass it too.

    A kind that is a point of the grid defines `grid_point`; any other kind defines `cost` and `build`.
    """

    parts: ClassVar[tuple[str, ...]] = ()  # what may follow the name in a schedule (`ansa.local`)

    @property
    def alternation(self) -> tuple[str, ...]:
        """The parts in the order in which the bare name takes them, occurrence by occurrence."""
        return self.parts

    def grid_point(self, d_model: int, part: str | None = None) -> "AttentionConfig":
        """The same block spelt as projection and patterns, with every default worked out for d_model."""
        raise NotImplementedError(f"{type(self).__name__} defines neither grid_point nor its own cost and build")

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        """Parameters, forward FLOPs and cache elements of one layer on one row of seq_len tokens."""
        return attention_cost(self.grid_point(d_model, part), d_model, seq_len)

    def build(self, d_model: int, part: str | None = None):
        """The torch module of one layer."""
        from zoo.blocks.base import Attention

        return Attention(self.grid_point(d_model, part), d_model)

    def check(self, d_model: int, part: str | None = None) -> None:
        """Raise ValueError if the block cannot be built for d_model, or has no such part."""
        if part not in (self.parts or (None,)):
            known = f"one of {', '.join(self.parts)}" if self.parts else "none, the block has a single part"
            raise ValueError(f"block {type(self).__name__}: part must be {known}; found {part!r}")
        if found := self.problems(d_model):
            lines = [f"{'.'.join(map(str, path))} {why}" for path, why in found]
            raise ValueError(f"block {type(self).__name__}: " + "; ".join(lines))

    def lower(self, target: type, d_model: int, **changes: Any):
        """A `target` config made from this config's fields of the same names, derived defaults worked out."""
        values = {**dict(self), **(self.filled(d_model) if hasattr(target, "filled") else {}), **changes}
        return target(**{name: values[name] for name in target.model_fields if name in values and name != "kind"})


class GQA(RopeFields, GQAFields, Kinded):
    """q = W_Q x, k = W_K x, v = W_V x, rotary embedding on q and k (Ainslie 2023, arXiv 2305.13245).

    n_kv_heads = n_heads is multi-head attention, 1 is multi-query. Cached: rotated k, and v.
    """

    kind: Literal["gqa"] = Field("gqa", description="Grouped-query projection.")

    def entries(self) -> dict[str, tuple[int, ...]]:
        """Shape of what is cached for one token, by name."""
        return {"key": (self.n_kv_heads, self.head_dim), "value": (self.n_kv_heads, self.v_head_dim)}

    @property
    def rotated_entry(self) -> str:
        """The entry that carries the rotary embedding."""
        return "key"

    @property
    def qk_dim(self) -> int:
        return self.head_dim


class MLA(RopeFields, LatentFields, Kinded):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): GLA with one latent head and K = H."""

    kind: Literal["mla"] = Field("mla", description="Multi-head latent projection.")

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads

    @property
    def n_latent_heads(self) -> int:
        return 1

    def entries(self) -> dict[str, tuple[int, ...]]:
        """Shape of what is cached for one token, by name."""
        return latent_entries(self)

    @property
    def rotated_entry(self) -> str:
        """The entry that carries the rotary embedding."""
        return "rope_key"

    @property
    def qk_dim(self) -> int:
        return self.head_dim + self.rope_dim


class GLA(RopeFields, GroupedLatentFields, Kinded):
    """Grouped latent attention (Zadouri 2025, arXiv 2505.21487). Not gated linear attention, which fla calls GLA.

    Latent head j is RMSNorm(W_DKV x)_j; group g reads its latent head: k_g = [W_UK,g c_j ; k_R], v_g = W_UV,g c_j.
    Cached: the latent and the rotary key that all heads share.
    """

    kind: Literal["gla"] = Field("gla", description="Grouped latent projection.")

    def entries(self) -> dict[str, tuple[int, ...]]:
        """Shape of what is cached for one token, by name."""
        return latent_entries(self)

    @property
    def rotated_entry(self) -> str:
        """The entry that carries the rotary embedding."""
        return "rope_key"

    @property
    def qk_dim(self) -> int:
        return self.head_dim + self.rope_dim


def latent_entries(projection: MLA | GLA) -> dict[str, tuple[int, ...]]:
    latent_heads = projection.n_latent_heads
    return {"latent": (latent_heads, projection.kv_rank // latent_heads), "rope_key": (projection.rope_dim,)}


class Full(Kinded):
    """Every key up to the query's own (Vaswani 2017)."""

    kind: Literal["full"] = Field("full", description="Causal attention over all keys.")


class Window(WindowFields, Kinded):
    """The latest `window` keys, the query's own included (Beltagy 2020, arXiv 2004.05150)."""

    kind: Literal["window"] = Field("window", description="Sliding-window attention.")


class Compression(CompressionFields, Kinded):
    """Keys and values pooled over blocks that lie wholly in the query's past (NSA, arXiv 2502.11089)."""

    kind: Literal["compression"] = Field("compression", description="Attention over pooled blocks.")


class Selection(SelectionFields, Kinded):
    """The tokens of the blocks that the compression scores find most important (NSA, arXiv 2502.11089)."""

    kind: Literal["selection"] = Field("selection", description="Attention over selected blocks.")


Projection = Annotated[GQA | MLA | GLA, Field(discriminator="kind")]
Pattern = Annotated[Full | Window | Compression | Selection, Field(discriminator="kind")]


class AttentionConfig(BlockConfig):
    """Any projection with any set of patterns; several patterns are summed with one sigmoid gate per head and pattern.

    The generic kind `attention`: every other kind is a shorter spelling of one of these.
    """

    about: ClassVar[About] = About(
        example={
            "projection": {"kind": "mla", "n_heads": 8, "kv_rank": 96, "rope_dim": 16},
            "patterns": [
                {"kind": "compression", "compression_block": 16, "compression_stride": 16},
                {"kind": "selection", "selection_block": 16, "n_selected": 6},
                {"kind": "window", "window": 64},
            ],
        }
    )

    kind: Literal["attention"] = Field("attention", description="A projection and patterns, spelt out.")
    projection: Projection = Field(default_factory=GQA, description="How queries, keys and values are made.")
    patterns: tuple[Pattern, ...] = Field(
        (Full(),), min_length=1, max_length=4, description="Which keys a query sees; each pattern at most once."
    )
    separate_kv: Flag = Field(False, description="Keys and values for each pattern of their own (gqa only), as NSA.")

    def pattern(self, kind: str) -> Full | Window | Compression | Selection | None:
        """The pattern of that kind, or None."""
        return next((pattern for pattern in self.patterns if pattern.kind == kind), None)

    @property
    def n_kv_sets(self) -> int:
        """How many key/value projections the block has."""
        return len(self.patterns) if self.separate_kv else 1

    def problems(self, d_model: int | None = None) -> list[Problem]:
        found = super().problems(d_model)
        found += [(("projection", *path), why) for path, why in self.projection.problems(d_model)]
        kinds = [pattern.kind for pattern in self.patterns]
        for index, pattern in enumerate(self.patterns):
            found += [(("patterns", index, *path), why) for path, why in pattern.problems(d_model)]
            if pattern.kind in kinds[:index]:
                found.append((("patterns", index), f"each pattern may be given once; found a second {pattern.kind!r}"))
        if "selection" in kinds:
            found += self._selection_problems(kinds.index("selection"))
        if self.separate_kv and self.projection.kind != "gqa":
            why = f"needs projection gqa: {self.projection.kind} makes all keys and values from the one cached latent"
            found.append((("separate_kv",), f"{why}; found true"))
        elif self.separate_kv and len(kinds) == 1:
            found.append((("separate_kv",), "needs two patterns or more; found true with one"))
        return found

    def _selection_problems(self, index: int) -> list[Problem]:
        compression = self.pattern("compression")
        if compression is None:
            why = "selection needs the pattern compression beside it, whose scores choose the blocks; found none"
            return [(("patterns", index), why)]
        return [(("patterns", index, *path), why) for path, why in stride_problems(compression, self.patterns[index])]

    def grid_point(self, d_model: int, part: str | None = None) -> "AttentionConfig":
        self.check(d_model, part)
        projection = {**dict(self.projection), **self.projection.filled(d_model)}
        return AttentionConfig(
            projection=type(self.projection)(**projection), patterns=self.patterns, separate_kv=self.separate_kv
        )
