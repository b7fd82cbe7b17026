"""No position embedding. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import NOPE_PAPER, About
from zoo.blocks.positions.base import PositionConfig


class NoPosition(PositionConfig):
    """Queries and keys as they are (NoPE): a causal model still learns an order (Kazemnejad 2023, arXiv 2305.19466)."""

    about: ClassVar[About] = About(papers=(NOPE_PAPER,))

    kind: Literal["none"] = Field("none", description="No position embedding.")

    @property
    def shown(self) -> str:
        return "no rope"
