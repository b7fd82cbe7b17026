"""The pattern `selection`: the tokens of the most important blocks. No torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import NSA_PAPER, About
from zoo.blocks.cost import INT32, compression_pairs, everything_from, lowest, selection_pairs
from zoo.blocks.fields import FieldProblem, SelectionFields, stride_problems
from zoo.blocks.patterns.base import Buffer, PatternConfig
from zoo.blocks.patterns.compression_config import SLOTS, Compression

if TYPE_CHECKING:
    from zoo.blocks.projections.base import ResolvedProjection
    from zoo.blocks.resolved import ResolvedAttention


class Selection(SelectionFields, PatternConfig):
    """The tokens of the blocks that the compression scores find most important (NSA, arXiv 2502.11089)."""

    module: ClassVar[str] = "zoo.blocks.patterns.selection:SelectionPattern"
    needs: ClassVar[tuple[str, ...]] = ("compression",)
    keeps_queries: ClassVar[bool] = True
    colour: ClassVar[int] = 2
    about: ClassVar[About] = About(
        r"""
The scores of compression say which tokens to read in full. With $p_{t,i}(j)$ the weight that head $i$ gives compression
block $j$, the importance for group $g$ of the selection block of tokens $[mb,\, (m + 1)b)$ is

$$
I_{t,g}(m) = \sum_{a=0}^{b/s - 1} \; \sum_{c=0}^{l/s - 1} \; \sum_{i \in g}
p_{t,i}\left(\frac{b}{s} m + a - c\right)
$$

The first `n_init` blocks and the latest `n_local` are always chosen; the other places of $n$ go to the highest
importances (ties to the lower index) among blocks that begin at or before $t$. Then

$$ S_{t,g} = \{\, u \le t \mid \lfloor u/b \rfloor \text{ is chosen} \,\} $$

Queries with the same $\lfloor t/q \rfloor$ use the choice made for the first of them. No gradient flows through it.
""",
        (NSA_PAPER,),
    )

    kind: Literal["selection"] = Field("selection", description="Attention over selected blocks.")

    def problems_beside(self, others: Mapping[str, PatternConfig]) -> list[FieldProblem]:
        compression = others.get("compression")
        if compression is None:
            return [
                ((), "selection needs the pattern compression in the same block: its scores choose the blocks to read")
            ]
        assert isinstance(compression, Compression)
        return stride_problems(compression, self)

    def describe(self) -> str:
        shared = f" by {self.query_group} queries" if self.query_group > 1 else ""
        return f"selection {self.n_selected} x {self.selection_block}{shared}"

    def pairs(self, seq_len: int) -> int:
        return selection_pairs(seq_len, self.selection_block, self.n_selected)

    @property
    def pairs_formula(self) -> str:
        past = "min(n_selected - 1, t//selection_block)*selection_block"
        return f"sum({past} + t % selection_block + 1 for t in range(seq_len))"

    def reach(self, known: int, seq_len: int) -> int:
        """A selection that is free to choose counts as seeing every block, because some choice does."""
        block, first = self.selection_block, lowest(known)
        if self.n_selected > self.n_local + self.n_init or (self.n_init and first < self.n_init * block):
            return everything_from(first, seq_len)
        found = 0
        for index in range(first // block, -(-seq_len // block)):
            if inside := known >> (index * block) & ((1 << block) - 1):  # then its block, and those it is local to
                start = index * block
                found |= everything_from(start + lowest(inside), min(seq_len, start + self.n_local * block))
        return found

    @property
    def span(self) -> int:
        return self.n_selected * self.selection_block

    def flops(self, attention: "ResolvedAttention", seq_len: int) -> dict[str, float]:
        compression, projection = _compression_of(attention), attention.projection
        grid = compression.compression_block, compression.compression_stride
        scored = compression_pairs(seq_len, *grid, self.query_group)
        choice = {"choice": 2.0 * projection.n_heads * projection.qk_dim * scored}
        return choice | super().flops(attention, seq_len)

    def flops_formulas(self, attention: "ResolvedAttention") -> dict[str, str]:
        scored = _compression_of(attention).pairs_formula
        if self.query_group > 1:
            first = "ceil((j*compression_stride + compression_block - 1)/query_group)"
            scored = f"sum(max(0, ceil(seq_len/query_group) - {first}) for j in range({SLOTS}))"
        choice = {"choice": f"2*n_heads*{attention.projection.width_factor}*{scored}"}
        return choice | super().flops_formulas(attention)

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """Besides, the choice: int32, one for each group of queries and key head.

        Selection by key block keeps about as much again, its index, which is left out: 2% of what attention keeps in
        nsa_340m.
        """
        chosen = INT32 * attention.projection.n_kv_heads * self.n_selected / self.query_group
        return super().activation_bytes(attention, seq_len) + seq_len * chosen

    def buffers(self, projection: "ResolvedProjection", seq_len: int) -> dict[str, Buffer]:
        """The latest choice, which later queries of a group use."""
        if self.query_group == 1:
            return {}
        return {"choice": Buffer({"chosen": (self.n_selected,)}, projection.n_kv_heads, "int32", fill=-1)}


def _compression_of(attention: "ResolvedAttention") -> Compression:
    found = attention.pattern("compression")
    assert isinstance(found, Compression), "problems_beside refuses selection without it"
    return found
