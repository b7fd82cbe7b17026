"""A block from elsewhere: every query takes the plain mean of the values up to its own. No torch until it is built."""

from typing import Literal

from pydantic import Field

from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.blocks.fields import Count


class AverageConfig(BlockConfig):
    """The causal mean of values: attention with equal weights. Cached: one running sum, whatever the length."""

    kind: Literal["average"] = Field("average", description="Causal mean of values.")
    width: Count = Field(32, description="Channels that are averaged.")

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        weights = d_model * self.width
        flops = {"value": 2.0 * seq_len * weights, "output": 2.0 * seq_len * weights}
        return Cost({"value": weights, "output": weights}, flops, self.width, self.width)

    def build(self, d_model: int, part: str | None = None):
        from zoo_average.module import Average

        return Average(d_model, self.width)
