"""The pattern `moba`: blocks of tokens chosen by their mean keys. No torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.cost import INT32, compression_pairs, everything_from, lowest, n_slots, selection_pairs
from zoo.blocks.fields import NSelected, SelectionBlock
from zoo.blocks.patterns.base import Buffer, PatternConfig

if TYPE_CHECKING:
    from zoo.blocks.projections.base import ResolvedProjection
    from zoo.blocks.resolved import ResolvedAttention

SLOTS = "ceil(seq_len/selection_block)"  # n_slots as an expression
UNREAD = 16  # channels of the values that stand in where only the sum of the scores is wanted
WIDEST = 128  # tokens of a block that the kernels take; larger blocks are read as several


class MoBA(PatternConfig):
    """The query's own block, and past blocks chosen by the products of the query with their mean keys (MoBA).

    As `selection`, without a branch of compression: the mean keys only choose (Lu 2025, arXiv 2502.13189).
    """

    module: ClassVar[str] = "zoo.blocks.patterns.moba:MoBAPattern"
    keeps_queries: ClassVar[bool] = True
    colour: ClassVar[int] = 4
    n_init: ClassVar[int] = 0  # no block but the query's own is always chosen, and every query has its own choice
    n_local: ClassVar[int] = 1
    query_group: ClassVar[int] = 1
    about: ClassVar[About] = About(
        r"""
Tokens are cut into blocks of $b$. With $\bar k_{m,g}$ the mean of the rotated keys of block $m$, and $p_{t,i}(m)$ the
softmax of $s\, q_{t,i} \cdot \bar k_{m,g}$ over the blocks that lie wholly in the past, the importance of a block for
group $g$ is $I_{t,g}(m) = \sum_{i \in g} p_{t,i}(m)$. The query's own block is always chosen; the other $n - 1$ places
go to the past blocks of the highest importance, ties to the lower index. Then

$$ S_{t,g} = \{\, u \le t \mid \lfloor u/b \rfloor \text{ is chosen} \,\} $$

With a key for each query head, as in the paper, these are the blocks of the highest products; heads that share a key
choose together. No gradient flows through the choice.
""",
        (Paper("MoBA: Mixture of Block Attention for Long-Context LLMs (Lu 2025)", "2502.13189"),),
        example={"selection_block": 4, "n_selected": 3},
    )

    kind: Literal["moba"] = Field("moba", description="Attention over blocks chosen by their mean keys.")
    selection_block: SelectionBlock = 512
    n_selected: NSelected = Field(3, description="Blocks n that a query attends to, its own included.")

    def describe(self) -> str:
        return f"MoBA {self.n_selected} x {self.selection_block}"

    @property
    def pieces(self) -> int:
        """How many blocks of the kernels make up one of these."""
        widths = [width for width in (WIDEST, 64, 32, 16) if self.selection_block % width == 0]
        return self.selection_block // widths[0] if widths and self.selection_block > WIDEST else 1

    def pairs(self, seq_len: int) -> int:
        return selection_pairs(seq_len, self.selection_block, self.n_selected)

    @property
    def pairs_formula(self) -> str:
        past = "min(n_selected - 1, t//selection_block)*selection_block"
        return f"sum({past} + t % selection_block + 1 for t in range(seq_len))"

    def reach(self, known: int, seq_len: int) -> int:
        """A choice that is free counts as one of every block, because some choice is."""
        block, first = self.selection_block, lowest(known)
        if self.n_selected > 1:
            return everything_from(first, seq_len)
        found = 0
        for start in range(first // block * block, seq_len, block):
            if inside := known >> start & ((1 << block) - 1):
                found |= everything_from(start + lowest(inside), min(seq_len, start + block))
        return found

    @property
    def span(self) -> int:
        return self.n_selected * self.selection_block

    def flops(self, attention: "ResolvedAttention", seq_len: int) -> dict[str, float]:
        """The products with the mean keys are made twice: for their sum, and for the choice."""
        block, projection = self.selection_block, attention.projection
        width = 2 * projection.qk_dim + UNREAD
        choice = {"choice": 2.0 * projection.n_heads * width * compression_pairs(seq_len, block, block)}
        return choice | super().flops(attention, seq_len)

    def flops_formulas(self, attention: "ResolvedAttention") -> dict[str, str]:
        width = f"(2*{attention.projection.width_factor} + {UNREAD})"
        scored = f"sum(max(0, seq_len - (j + 1)*selection_block + 1) for j in range({SLOTS}))"
        return {"choice": f"2*n_heads*{width}*{scored}"} | super().flops_formulas(attention)

    def made_keys(self, seq_len: int) -> int:
        return n_slots(seq_len, self.selection_block)

    @property
    def made_keys_formula(self) -> str:
        return SLOTS

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """Besides, the choice: int32, one for each query and key head; the index of selection is left out."""
        chosen = INT32 * attention.projection.n_kv_heads * self.n_selected * self.pieces
        return super().activation_bytes(attention, seq_len) + seq_len * chosen

    def buffers(self, projection: "ResolvedProjection", seq_len: int) -> dict[str, Buffer]:
        """The mean of what the keys of each block are made of."""
        return {"pooled": Buffer(projection.key_entries(), n_slots(seq_len, self.selection_block))}

    @property
    def pooled_formula(self) -> str | None:
        return None
