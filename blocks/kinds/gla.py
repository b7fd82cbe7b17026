"""`gla`: grouped latent attention (not gated linear attention)."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks import fields
from zoo.blocks.about import About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.latent_config import GLA


class GLAConfig(
    fields.SharingFields,
    fields.OutputFields,
    fields.RopeFields,
    fields.ScoreFields,
    fields.GroupedLatentFields,
    BlockConfig,
):
    """Grouped latent attention (Zadouri 2025, arXiv 2505.21487): MLA with its latent cut in C heads.

    The defaults are the paper's GLA-2: two latent heads, a key for each query head, the cache of MLA. Over all keys, or
    over a sliding window where `window` is given. Not gated linear attention, which flash-linear-attention calls GLA.
    """

    about: ClassVar[About] = About(example={"n_heads": 8, "n_latent_heads": 2, "kv_rank": 96, "rope_dim": 16})

    kind: Literal["gla"] = Field("gla", description="Grouped latent attention.")
    n_latent_heads: fields.LatentHeads = 2
    window: fields.Length | None = Field(None, description="Sliding window in tokens, own included. Default: all keys.")

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        pattern = Full() if self.window is None else Window(window=self.window)
        return AttentionConfig(projection=self.lower(GLA, d_model), patterns=(pattern,), **self.of_output)
