"""`full`: grouped-query attention over all keys."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.fields import GQAFields, OutputFields, RopeFields, ScoreFields, SharingFields
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.projections.gqa_config import GQA


class FullConfig(SharingFields, OutputFields, RopeFields, ScoreFields, GQAFields, BlockConfig):
    """Causal attention over all keys (Vaswani 2017), heads grouped as in GQA (arXiv 2305.13245).

    n_kv_heads = n_heads is multi-head attention, n_kv_heads = 1 multi-query attention.
    """

    about: ClassVar[About] = About(example={"n_heads": 8, "n_kv_heads": 2})

    kind: Literal["full"] = Field("full", description="Grouped-query attention over all keys.")

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        return AttentionConfig(projection=self.lower(GQA, d_model), patterns=(Full(),), **self.of_output)
