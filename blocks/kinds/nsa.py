"""`nsa`: native sparse attention."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks import fields
from zoo.blocks.about import NSA_PAPER, About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.patterns.compression_config import Compression
from zoo.blocks.patterns.selection_config import Selection
from zoo.blocks.patterns.window_config import Window
from zoo.blocks.projections.gqa_config import GQA


class NSAConfig(
    fields.GateFields,
    fields.OutputFields,
    fields.RopeFields,
    fields.WindowFields,
    fields.SelectionFields,
    fields.CompressionFields,
    fields.GQAFields,
    BlockConfig,
):
    """Native sparse attention (DeepSeek 2025, arXiv 2502.11089): compression, selection and window, gated per head.

    Block sizes and counts default to the paper's. By default blocks are pooled by their mean, and the three patterns
    share one key/value projection, as in public Triton implementations. `pooling: mlp` and `separate_kv: true` are the
    paper's.
    """

    about: ClassVar[About] = About(
        papers=(NSA_PAPER,),
        example={
            "n_heads": 8,
            "n_kv_heads": 2,
            "compression_block": 16,
            "compression_stride": 8,
            "selection_block": 16,
            "n_selected": 6,
            "window": 64,
        },
    )

    kind: Literal["nsa"] = Field("nsa", description="Native sparse attention.")
    n_kv_heads: fields.KVHeads = 4
    separate_kv: fields.Flag = Field(
        False, description="A separate key/value projection for each pattern, as in the NSA paper."
    )

    def problems(self, d_model: int | None = None) -> list[fields.FieldProblem]:
        found = super().problems(d_model) + fields.stride_problems(self, self)
        return found + fields.norm_set_problems(self, self.separate_kv)

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        return AttentionConfig(
            projection=self.lower(GQA, d_model),
            patterns=tuple(self.lower(pattern, d_model) for pattern in (Compression, Selection, Window)),
            separate_kv=self.separate_kv,
            gate_bias=self.gate_bias,
            **self.of_output,
        )
