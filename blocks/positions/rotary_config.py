"""The position embedding `rotary`, and what scales its frequencies. No torch; tables: blocks/positions/rotary.py."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import ROPE_PAPER, About
from zoo.blocks.checked import Checked, Factor, FieldProblem, Flag, Length, Positive, Weight
from zoo.blocks.positions.base import PositionConfig


class LinearScaling(Checked):
    """Position interpolation (Chen 2023, arXiv 2306.15595): every rotary frequency divided by `factor`."""

    rope_type: Literal["linear"] = Field(description="Linear position interpolation.")
    factor: Factor = Field(description="How many times longer the context becomes.")

    @property
    def values(self) -> tuple:
        """All fields, as plain numbers: torch.compile cannot hash a config."""
        return self.rope_type, self.factor

    @property
    def attention_factor_value(self) -> float:
        return 1.0

    @property
    def score_factor(self) -> float:
        return 1.0


class YarnScaling(Checked):
    """YaRN (Peng 2023, arXiv 2309.00071); names and meaning of the fields as in Hugging Face transformers."""

    rope_type: Literal["yarn"] = Field(description="YaRN interpolation by parts.")
    factor: Factor = Field(description="How many times longer the context becomes.")
    original_max_position_embeddings: Length = Field(description="Context length before the extension, in tokens.")
    attention_factor: Positive | None = Field(
        None, description="Multiplies cos and sin. Default: from factor, mscale and mscale_all_dim."
    )
    beta_fast: Positive = Field(32.0, description="Channels that turn more often in the old context are left alone.")
    beta_slow: Positive = Field(1.0, description="Channels that turn less often in it are interpolated.")
    mscale: Weight | None = Field(
        None, description="Weight of log(factor) in the attention factor's numerator; counts with mscale_all_dim."
    )
    mscale_all_dim: Weight | None = Field(
        None, description="The same for the denominator; in MLA and GLA it also scales the scores (DeepSeek-V2)."
    )
    truncate: Flag = Field(True, description="Round the bounds of the interpolated channels outwards.")

    @property
    def attention_factor_value(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def score_factor(self) -> float:
        """What the softmax scale of a latent projection is multiplied by, as DeepSeek's own code does."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    @property
    def values(self) -> tuple:
        """As `LinearScaling.values`."""
        scales = self.attention_factor, self.mscale, self.mscale_all_dim
        bounds = self.beta_fast, self.beta_slow, self.truncate
        return self.rope_type, self.factor, self.original_max_position_embeddings, *scales, *bounds

    def _mscale(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model)
        if self.beta_fast <= self.beta_slow:
            found.append((("beta_fast",), f"must be above beta_slow ({self.beta_slow:g}); found {self.beta_fast:g}"))
        return found


class Llama3Scaling(Checked):
    """The scaling of Llama 3.1 (arXiv 2407.21783); names and meaning of the fields as in Hugging Face transformers."""

    rope_type: Literal["llama3"] = Field(description="Interpolation of the channels that turn slowly, as Llama 3.1.")
    factor: Factor = Field(description="How many times longer the context becomes.")
    original_max_position_embeddings: Length = Field(description="Context length before the extension, in tokens.")
    low_freq_factor: Positive = Field(
        1.0, description="Channels that turn less often than this in the old context are interpolated."
    )
    high_freq_factor: Positive = Field(
        4.0,
        description="Channels that turn more often than this in the old context stay; those between are blended.",
    )

    @property
    def values(self) -> tuple:
        """As `LinearScaling.values`."""
        bounds = self.low_freq_factor, self.high_freq_factor
        return self.rope_type, self.factor, self.original_max_position_embeddings, *bounds

    @property
    def attention_factor_value(self) -> float:
        return 1.0

    @property
    def score_factor(self) -> float:
        return 1.0

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model)
        if self.high_freq_factor < self.low_freq_factor:
            why = f"must not be below low_freq_factor ({self.low_freq_factor:g}); found {self.high_freq_factor:g}"
            found.append((("high_freq_factor",), why))
        return found


RopeScaling = Annotated[LinearScaling | YarnScaling | Llama3Scaling, Field(discriminator="rope_type")]
Theta = Annotated[float, Field(strict=True, gt=1, allow_inf_nan=False, description="Base of the rotary wavelengths.")]
Scaling = Annotated[
    RopeScaling | None,
    Field(description="Context extension, `linear`, `yarn` or `llama3`, spelt as in transformers. Default: none."),
]


class Rotary(PositionConfig):
    """Rotary position embedding (Su 2021, arXiv 2104.09864); channel i turns with channel i + d/2 (half split)."""

    module: ClassVar[str] = "zoo.blocks.positions.rotary:RotaryPositions"
    about: ClassVar[About] = About(
        r"""
$R_t$ turns the pair of channels $(i, i + d/2)$ by the angle $t\, \theta^{-2i/d}$, so that a score depends on the
distance of its two tokens alone. `scaling` changes the frequencies, and by YaRN's attention factor the length as well.
""",
        (ROPE_PAPER,),
    )

    kind: Literal["rotary"] = Field("rotary", description="Rotary position embedding.")
    theta: Theta = 10_000.0
    scaling: Scaling = None

    @property
    def shown(self) -> float:
        return self.theta

    @property
    def score_factor(self) -> float:
        return 1.0 if self.scaling is None else self.scaling.score_factor

    @property
    def values(self) -> tuple:
        return self.kind, self.theta, None if self.scaling is None else self.scaling.values
