"""What `plugins: [zoo_average.twice]` imports: it registers its kinds."""

from typing import Literal

from pydantic import Field

from zoo.blocks import register
from zoo_average import AverageConfig


class TwiceConfig(AverageConfig):
    """The same with another name and default."""

    kind: Literal["twice"] = Field("twice", description="Causal mean of values, wider.")
    width: int = Field(64, ge=1, description="Channels that are averaged.")


register("twice", "zoo_average.twice:TwiceConfig")
