"""`ansa`: alternating native sparse attention (ASA), whose layers take turns between two parts."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks import fields
from zoo.blocks.about import ASA_PAPER, About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.patterns.compression_config import Compression
from zoo.blocks.patterns.selection_config import Selection
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.latent_config import GLA, MLA


class AnsaConfig(
    fields.GateFields,
    fields.OutputFields,
    fields.RopeFields,
    fields.WindowFields,
    fields.SelectionFields,
    fields.CompressionFields,
    fields.GroupedLatentFields,
    BlockConfig,
):
    """Alternating sparse attention (ASA, arXiv 2511.00819): layers take turns between a local and a global part.

    local: a sliding window with MLA.  global: compression and selection with GLA, gated per head.
    From the paper: the two parts and their 1:1 alternation, blocks of 16, queries in groups of 4. Ours, because no
    public text gives them: heads, rotary width, window, n_selected (64 x 16 = NSA's 1024 tokens), and kv_rank, which
    makes the cache of a layer half that of NSA's with as many heads: kv_rank + rope_dim = n_kv_heads head_dim.
    """

    parts: ClassVar[tuple[str, ...]] = ("local", "global")
    about: ClassVar[About] = About(
        papers=(ASA_PAPER,),
        example={"n_heads": 8, "n_kv_heads": 2, "rope_dim": 16, "window": 64, "n_selected": 6},
    )

    kind: Literal["ansa"] = Field("ansa", description="Alternating native sparse attention.")
    n_kv_heads: fields.KVHeads = 4
    kv_rank: fields.Size | None = Field(
        None, description="Width r of the cached latent. Default: n_kv_heads head_dim - rope_dim."
    )
    compression_block: fields.CompressionBlock = 16
    compression_stride: fields.CompressionStride = 16
    selection_block: fields.SelectionBlock = 16
    n_selected: fields.NSelected = 64
    query_group: fields.QueryGroup = 4
    first: Literal["local", "global"] = Field(
        "local", description="The part of the first plain `ansa` in a schedule; the next ones alternate."
    )

    @property
    def alternation(self) -> tuple[str, ...]:
        return self.parts if self.first == "local" else self.parts[::-1]

    def filled(self, d_model: int | None) -> dict[str, Any]:
        values = super().filled(d_model)
        if self.kv_rank is None and values["head_dim"]:
            values["kv_rank"] = self.n_kv_heads * values["head_dim"] - values["rope_dim"]
        return values

    def problems(self, d_model: int | None = None) -> list[fields.FieldProblem]:
        found = super().problems(d_model) + fields.stride_problems(self, self)
        rank = self.filled(d_model)["kv_rank"]
        if rank is not None and rank < 1:
            found.append((("kv_rank",), "n_kv_heads head_dim - rope_dim leaves no width for the latent: give kv_rank"))
        return found

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        if part == "local":
            return AttentionConfig(
                projection=self.lower(MLA, d_model), patterns=(self.lower(Window, d_model),), **self.of_output
            )
        patterns = tuple(self.lower(pattern, d_model) for pattern in (Compression, Selection))
        return AttentionConfig(
            projection=self.lower(GLA, d_model), patterns=patterns, gate_bias=self.gate_bias, **self.of_output
        )
