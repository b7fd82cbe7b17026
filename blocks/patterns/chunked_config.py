"""The pattern `chunked`: the keys of the query's own chunk. No torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import BLOCKWISE, About
from zoo.blocks.cost import BF16, everything_from, lowest, window_pairs
from zoo.blocks.fields import ChunkFields
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig

if TYPE_CHECKING:
    from zoo.blocks.resolved import ResolvedAttention


class Chunked(ChunkFields, PatternConfig):
    """The keys of the query's own chunk, up to its own (Llama 4); a document is cut from its first token on."""

    module: ClassVar[str] = "zoo.blocks.patterns.chunked:ChunkedPattern"
    score_options: ClassVar[tuple[str, ...]] = SCORE_OPTIONS
    colour: ClassVar[int] = 5
    about: ClassVar[About] = About(
        r"""
A row is cut into chunks of $m$ tokens, and a query sees the keys of its own chunk:
$S_t = \{\, m \lfloor t / m \rfloor, \dots, t \,\}$.
""",
        (BLOCKWISE,),
        example={"chunk": 6},
    )

    kind: Literal["chunked"] = Field("chunked", description="Attention inside chunks of tokens.")

    def describe(self) -> str:
        return f"chunks of {self.chunk}"

    def pairs(self, seq_len: int) -> int:
        whole, rest = divmod(seq_len, self.chunk)
        return whole * window_pairs(self.chunk, self.chunk) + window_pairs(rest, self.chunk)

    @property
    def pairs_formula(self) -> str:
        return "sum(t % chunk + 1 for t in range(seq_len))"

    def reach(self, known: int, seq_len: int) -> int:
        """In each chunk, every position from the first known one on."""
        size, found = self.chunk, 0
        for start in range(lowest(known) // size * size, seq_len, size):
            if inside := known >> start & ((1 << size) - 1):
                found |= everything_from(start + lowest(inside), min(seq_len, start + size))
        return found

    @property
    def span(self) -> int:
        return self.chunk

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """As full attention: the part of a key that all heads share is copied to every key head."""
        projection = attention.projection
        copies = BF16 * (projection.n_kv_heads - 1) * projection.shared_key_dim
        return super().activation_bytes(attention, seq_len) + seq_len * copies

    def kept_tokens(self, seq_len: int) -> int:
        return min(seq_len, self.chunk)

    @property
    def kept_formula(self) -> str:
        return "min(seq_len, chunk)"

    def lookback(self, ring: bool) -> int | None:
        return self.chunk - 1 if ring else None
