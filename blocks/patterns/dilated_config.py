"""The pattern `dilated`: every `dilation`-th key before the query. The worked example of docs/own_part.md. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import LONGFORMER, About
from zoo.blocks.cost import spread, window_pairs
from zoo.blocks.fields import Length
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig


class Dilated(PatternConfig):
    """The query's own key and those `dilation`, 2 `dilation`, ... tokens before it (Beltagy 2020, arXiv 2004.05150).

    It reaches `dilation` times as far as a window of as many keys, and never sees the tokens between.
    """

    module: ClassVar[str] = "zoo.blocks.patterns.dilated:DilatedPattern"
    reads_shared: ClassVar[bool] = True
    score_options: ClassVar[tuple[str, ...]] = SCORE_OPTIONS
    colour: ClassVar[int] = 3
    about: ClassVar[About] = About(
        r"""
A query sees $n$ keys that are $\delta$ tokens apart: $S_t = \{\, t - i \delta \ge 0 \mid 0 \le i < n \,\}$.
""",
        (LONGFORMER,),
        example={"n_keys": 4, "dilation": 3},
    )

    kind: Literal["dilated"] = Field("dilated", description="Dilated sliding-window attention.")
    n_keys: Length = Field(256, description="Keys n that a query sees, its own included.")
    dilation: Length = Field(4, description="Tokens from one of these keys to the next.")

    def describe(self) -> str:
        return f"dilated {self.n_keys} x {self.dilation}"

    def pairs(self, seq_len: int) -> int:
        """Tokens with the same position modulo the dilation form a row of their own, with a plain window."""
        whole, rest = divmod(seq_len, self.dilation)
        longer, others = window_pairs(whole + 1, self.n_keys), window_pairs(whole, self.n_keys)
        return rest * longer + (self.dilation - rest) * others

    @property
    def pairs_formula(self) -> str:
        return "sum(min(t//dilation + 1, n_keys) for t in range(seq_len))"

    def reach(self, known: int, seq_len: int) -> int:
        return spread(known, min(self.n_keys, -(-seq_len // self.dilation)), self.dilation)

    @property
    def span(self) -> int:
        return self.before + 1

    @property
    def before(self) -> int:
        """Tokens from the query back to the farthest key."""
        return (self.n_keys - 1) * self.dilation

    def kept_tokens(self, seq_len: int) -> int:
        return min(seq_len, self.before + 1)

    @property
    def kept_formula(self) -> str:
        return "min(seq_len, (n_keys - 1)*dilation + 1)"

    def lookback(self, ring: bool) -> int:
        return self.before
