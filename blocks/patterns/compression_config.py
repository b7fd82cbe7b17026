"""The pattern `compression`: keys and values pooled over blocks of tokens. No torch."""

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import NSA_PAPER, About
from zoo.blocks.cost import BF16, compression_pairs, everything_from, lowest, n_slots
from zoo.blocks.fields import CompressionFields
from zoo.blocks.patterns.base import Buffer, PatternConfig

if TYPE_CHECKING:
    from zoo.blocks.projections.base import ResolvedProjection
    from zoo.blocks.resolved import ResolvedAttention

SLOTS = "ceil(seq_len/compression_stride)"  # n_slots as an expression


class Compression(CompressionFields, PatternConfig):
    """Keys and values pooled over blocks that lie wholly in the query's past (NSA, arXiv 2502.11089)."""

    module: ClassVar[str] = "zoo.blocks.patterns.compression:CompressionPattern"
    reads_tokens: ClassVar[bool] = False
    keeps_queries: ClassVar[bool] = True
    colour: ClassVar[int] = 1
    about: ClassVar[About] = About(
        r"""
Keys and values are pooled over blocks $j = 0, 1, \dots$ of $l$ tokens, one every $s$ tokens; with `pooling: mean`

$$
\bar k_{j,g} = \frac{1}{l} \sum_{u = js}^{js + l - 1} k_{u,g} \qquad
\bar v_{j,g} = \frac{1}{l} \sum_{u = js}^{js + l - 1} v_{u,g}
$$

A query sees the blocks that lie wholly in its past: $S_t = \{\, j \mid js + l - 1 \le t \,\}$. Where there is none yet,
the branch gives zeros. With `pooling: mlp`, a learned embedding of the offset is added and a two-layer MLP maps the
block to one entry.
""",
        (NSA_PAPER,),
    )

    kind: Literal["compression"] = Field("compression", description="Attention over pooled blocks.")

    def describe(self) -> str:
        return f"compression {self.compression_block}/{self.compression_stride}"

    def pairs(self, seq_len: int) -> int:
        return compression_pairs(seq_len, self.compression_block, self.compression_stride)

    @property
    def pairs_formula(self) -> str:
        return f"sum(max(0, seq_len - j*compression_stride - compression_block + 1) for j in range({SLOTS}))"

    def reach(self, known: int, seq_len: int) -> int:
        """Every position from the end of the first block that holds a known one."""
        block, stride = self.compression_block, self.compression_stride
        first = max(0, -(-(lowest(known) - block + 1) // stride))  # the first block that ends after it
        return everything_from(first * stride + block - 1, seq_len)

    @property
    def span(self) -> int:
        """Not bounded: four blocks, in which the grid shows."""
        return 4 * self.compression_block

    def tokens_of_keys(self, seq_len: int) -> list[range]:
        block, stride = self.compression_block, self.compression_stride
        starts = (slot * stride for slot in range(n_slots(seq_len, stride)))
        return [range(start, min(start + block, seq_len)) for start in starts]

    def parameters(self, projection: "ResolvedProjection") -> dict[str, int]:
        """An MLP for each cached entry, whose heads share it: two maps, and an embedding of the offset."""
        if self.pooling == "mean":
            return {}
        block, widths = self.compression_block, [shape[-1] for shape in projection.entries().values()]
        return {"pooling": sum((block + 1) * width**2 + block * width for width in widths)}

    def flops(self, attention: "ResolvedAttention", seq_len: int) -> dict[str, float]:
        flops = super().flops(attention, seq_len)
        if self.pooling == "mean":
            return flops
        entries, block = attention.projection.entries().values(), self.compression_block
        maps = sum((block + 1) * prod(shape) * shape[-1] for shape in entries)
        return flops | {"pooling": 2.0 * n_slots(seq_len, self.compression_stride) * maps}

    def made_keys(self, seq_len: int) -> int:
        return n_slots(seq_len, self.compression_stride)

    @property
    def made_keys_formula(self) -> str:
        return SLOTS

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """Besides, pooled entries and the keys and values made of them; with an MLP the gathered blocks it reads."""
        entries = sum(prod(shape) for shape in attention.projection.entries().values())
        pooled = entries + attention.projection.expanded_elements
        if self.pooling == "mlp":
            pooled += (self.compression_block + 3) * entries
        slots = n_slots(seq_len, self.compression_stride)
        return super().activation_bytes(attention, seq_len) + BF16 * slots * pooled

    def kept_tokens(self, seq_len: int) -> int:
        """Those of a block that is not yet pooled."""
        return min(seq_len, self.compression_block)

    @property
    def kept_formula(self) -> str:
        return "min(seq_len, compression_block)"

    def lookback(self, ring: bool) -> int:
        return self.compression_block - 1

    def buffers(self, projection: "ResolvedProjection", seq_len: int) -> dict[str, Buffer]:
        """One pooled entry for each stride, and, if keys are pooled before their rotation, those of the open block."""
        shapes, rotated = projection.entries(), projection.rotated_entry
        found = {"pooled": Buffer(shapes, n_slots(seq_len, self.compression_stride))}
        if not self.pool_rotated and rotated is not None:
            found["raw"] = Buffer({rotated: shapes[rotated]}, self.kept_tokens(seq_len))
        return found

    @property
    def pooled_formula(self) -> str | None:
        return SLOTS if self.pool_rotated else None
