"""`chunked`: grouped-query attention inside chunks of tokens."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.fields import ChunkFields, GQAFields, OutputFields, RopeFields, ScoreFields, SharingFields
from zoo.blocks.patterns.chunked_config import Chunked
from zoo.blocks.projections.gqa_config import GQA


class ChunkedConfig(SharingFields, OutputFields, RopeFields, ChunkFields, ScoreFields, GQAFields, BlockConfig):
    """Causal attention inside chunks of `chunk` tokens (Llama 4), heads as in GQA.

    The first token of a chunk sees itself alone; other layers of the schedule carry information across chunks.
    """

    about: ClassVar[About] = About(example={"n_heads": 8, "n_kv_heads": 2, "chunk": 64})

    kind: Literal["chunked"] = Field("chunked", description="Grouped-query attention inside chunks of tokens.")

    def grid_point(self, d_model: int, part: str | None = None) -> AttentionConfig:
        self.check(d_model, part)
        return AttentionConfig(
            projection=self.lower(GQA, d_model), patterns=(self.lower(Chunked, d_model),), **self.of_output
        )
