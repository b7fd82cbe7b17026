"""The pattern `full`: every earlier key. No torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import VASWANI, About
from zoo.blocks.cost import BF16, everything_from, lowest, window_pairs
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig

if TYPE_CHECKING:
    from zoo.blocks.resolved import ResolvedAttention


class Full(PatternConfig):
    """Every key up to the query's own (Vaswani 2017)."""

    module: ClassVar[str] = "zoo.blocks.patterns.full:FullPattern"
    reads_shared: ClassVar[bool] = True
    colour: ClassVar[int] = 6
    score_options: ClassVar[tuple[str, ...]] = SCORE_OPTIONS
    about: ClassVar[About] = About(
        r"""
A query sees every key up to its own: $S_t = \{0, \dots, t\}$.
""",
        (VASWANI,),
    )

    kind: Literal["full"] = Field("full", description="Causal attention over all keys.")

    def pairs(self, seq_len: int) -> int:
        return window_pairs(seq_len, seq_len)

    @property
    def pairs_formula(self) -> str:
        return "seq_len*(seq_len + 1)/2"

    def reach(self, known: int, seq_len: int) -> int:
        return everything_from(lowest(known), seq_len)

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """One product over both parts of a key: the part that all heads share is copied to every key head."""
        projection = attention.projection
        copies = BF16 * (projection.n_kv_heads - 1) * projection.shared_key_dim
        return super().activation_bytes(attention, seq_len) + seq_len * copies
