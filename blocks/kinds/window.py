"""`window`: grouped-query attention over a sliding window."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.fields import GQAFields, OutputFields, RopeFields, ScoreFields, SharingFields, WindowFields
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.gqa_config import GQA


class WindowConfig(SharingFields, OutputFields, RopeFields, WindowFields, ScoreFields, GQAFields, BlockConfig):
    """Causal attention over the latest `window` keys (Beltagy 2020, arXiv 2004.05150; Mistral 7B), heads as in GQA."""

    about: ClassVar[About] = About(example={"n_heads": 8, "n_kv_heads": 2, "window": 64})

    kind: Literal["window"] = Field("window", description="Grouped-query attention over a sliding window.")

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        return AttentionConfig(
            projection=self.lower(GQA, d_model), patterns=(self.lower(Window, d_model),), **self.of_output
        )
