"""The pattern `window`: the latest keys. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import LONGFORMER, MISTRAL, About
from zoo.blocks.cost import spread, window_pairs
from zoo.blocks.fields import WindowFields
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig


class Window(WindowFields, PatternConfig):
    """The latest `window` keys, the query's own included (Beltagy 2020, arXiv 2004.05150)."""

    module: ClassVar[str] = "zoo.blocks.patterns.window:WindowPattern"
    reads_shared: ClassVar[bool] = True
    keeps_queries: ClassVar[bool] = True
    colour: ClassVar[int] = 0
    score_options: ClassVar[tuple[str, ...]] = SCORE_OPTIONS
    about: ClassVar[About] = About(
        r"""
A query sees the latest $w$ keys, its own included: $S_t = \{\max(0,\, t - w + 1), \dots, t\}$.
""",
        (LONGFORMER, MISTRAL),
    )

    kind: Literal["window"] = Field("window", description="Sliding-window attention.")

    def describe(self) -> str:
        return f"window {self.window}"

    def pairs(self, seq_len: int) -> int:
        return window_pairs(seq_len, self.window)

    @property
    def pairs_formula(self) -> str:
        return "sum(min(t + 1, window) for t in range(seq_len))"

    def reach(self, known: int, seq_len: int) -> int:
        return spread(known, min(self.window, seq_len))

    @property
    def span(self) -> int:
        return self.window

    def kept_tokens(self, seq_len: int) -> int:
        return min(seq_len, self.window)

    @property
    def kept_formula(self) -> str:
        return "min(seq_len, window)"

    def lookback(self, ring: bool) -> int | None:
        return self.window - 1 if ring else None
