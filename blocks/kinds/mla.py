"""`mla`: multi-head latent attention."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks import fields
from zoo.blocks.about import About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.latent_config import MLA


class MLAConfig(
    fields.SharingFields, fields.OutputFields, fields.RopeFields, fields.ScoreFields, fields.LatentFields, BlockConfig
):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one small latent and one rotary key are cached.

    Over all keys, or over a sliding window where `window` is given.
    """

    about: ClassVar[About] = About(example={"n_heads": 8, "kv_rank": 96, "rope_dim": 16})

    kind: Literal["mla"] = Field("mla", description="Multi-head latent attention.")
    window: fields.Length | None = Field(None, description="Sliding window in tokens, own included. Default: all keys.")

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        pattern = Full() if self.window is None else Window(window=self.window)
        return AttentionConfig(projection=self.lower(MLA, d_model), patterns=(pattern,), **self.of_output)
