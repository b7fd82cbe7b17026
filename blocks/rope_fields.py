"""The fields of a block about positions: its position embedding, and a temperature. No torch."""

from typing import Annotated

from pydantic import Field

from zoo.blocks.checked import Checked, FieldProblem, Flag, Length, Positive
from zoo.blocks.positions.base import PositionConfig
from zoo.blocks.positions.none_config import NoPosition
from zoo.blocks.positions.rotary_config import Rotary, Scaling, Theta
from zoo.blocks.registry import POSITIONS, PartOf

Position = Annotated[PositionConfig, PartOf(POSITIONS)]


class PositionTemperature(Checked):
    """Queries that grow with their position t: times 1 + `scale` ln(1 + floor((t + 1) / `every`)) (Llama 4)."""

    every: Length = Field(
        8192, description="Tokens after which queries grow for the first time; transformers: floor_scale."
    )
    scale: Positive = Field(0.1, le=100, description="How much they grow; transformers: attn_scale.")

    @property
    def values(self) -> tuple:
        """As `LinearScaling.values`."""
        return self.every, self.scale


class RopeFields(Checked):
    """How a block knows positions: rotary embedding (Su 2021, arXiv 2104.09864) unless `position` names another."""

    rope: Flag = Field(
        True, description="Rotate queries and keys by their position; false: no position embedding (NoPE)."
    )
    rope_theta: Theta = 10_000.0
    rope_scaling: Scaling = None
    position: Position | None = Field(
        None, description="Another position embedding, by kind. Default: rotary, with the fields that begin with rope."
    )
    position_temperature: PositionTemperature | None = Field(
        None,
        description="Queries times 1 + scale ln(1 + floor((t + 1) / every)), t the position (Llama 4, where rope is "
        "false). Default: none.",
    )

    @property
    def embedding(self) -> PositionConfig:
        """The position embedding that the fields name."""
        if self.position is not None:
            return self.position
        return Rotary(theta=self.rope_theta, scaling=self.rope_scaling) if self.rope else NoPosition()

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model)
        if self.position is None:
            if self.rope_scaling is not None and not self.rope:
                why = f"needs rope: true; found {self.rope_scaling.rope_type} without rotation"
                found.append((("rope_scaling",), why))
            return found
        for name in ("rope", "rope_theta", "rope_scaling"):
            if getattr(self, name) != RopeFields.model_fields[name].default:
                found.append(((name,), f"must be left out where position is given ({self.position.kind})"))
        return found + [(("position", *path), why) for path, why in self.position.problems(d_model)]
