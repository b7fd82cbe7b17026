"""The pattern `chunked`: the keys of the query's own chunk. No torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import BLOCKWISE, About
from zoo.blocks.cost import BF16, window_pairs
from zoo.blocks.fields import ChunkFields
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig

if TYPE_CHECKING:
    from zoo.blocks.resolved import ResolvedAttention


class Chunked(ChunkFields, PatternConfig):
    """The keys of the query's own chunk, up to its own (Llama 4); a document is cut from its first token on."""

    module: ClassVar[str] = "zoo.blocks.patterns.chunked:ChunkedPattern"
    reads_shared: ClassVar[bool] = True
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
        """In each chunk, every position from the first known one on: bits move up, never across the end of a chunk."""
        found, done, most = known, 1, min(self.chunk, seq_len)
        while done < most:
            found |= found << done & self._after(done, seq_len)
            done *= 2
        return found

    def _after(self, tokens: int, seq_len: int) -> int:
        """Bits of the positions before which at least `tokens` tokens of their chunk stand."""
        bits, width = (1 << self.chunk) - (1 << tokens), self.chunk
        while width < seq_len:
            bits |= bits << width
            width *= 2
        return bits & ((1 << seq_len) - 1)

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
