"""The feed-forwards that use every parameter for every token: `swiglu` and `gelu`. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.cost import BF16
from zoo.feed_forward.base import Count, FeedForwardConfig


class SwiGLU(FeedForwardConfig):
    """W_down(silu(W_gate x) * W_up x): three matrices, no biases (Shazeer 2020, arXiv 2002.05202)."""

    module: ClassVar[str] = "zoo.feed_forward.dense:SwiGLUModule"
    about: ClassVar[About] = About(
        r"""
$$ y = W_{down}\,(\operatorname{silu}(W_{gate}\, x) \odot W_{up}\, x) $$
""",
        (Paper("GLU Variants Improve Transformer (Shazeer 2020)", "2002.05202"),),
        example={"d_ff": 704},
    )

    kind: Literal["swiglu"] = Field("swiglu", description="Gated with SiLU, three matrices.")
    d_ff: Count = Field(description="Width of the hidden layer.")

    def parameters(self, d_model: int) -> int:
        return 3 * d_model * self.d_ff

    def activation_bytes(self, d_model: int) -> int:
        """The input, and both products before the gate; what the last map reads is made again in the backward."""
        return BF16 * (d_model + 2 * self.d_ff)


class GELU(FeedForwardConfig):
    """W_down gelu(W_up x): two matrices, no biases (Hendrycks 2016, arXiv 1606.08415)."""

    module: ClassVar[str] = "zoo.feed_forward.dense:GELUModule"
    about: ClassVar[About] = About(
        r"""
$$ y = W_{down} \operatorname{gelu}(W_{up}\, x) $$
""",
        (Paper("Gaussian Error Linear Units (Hendrycks 2016)", "1606.08415"),),
        example={"d_ff": 1024},
    )

    kind: Literal["gelu"] = Field("gelu", description="GELU, two matrices.")
    d_ff: Count = Field(description="Width of the hidden layer.")

    def parameters(self, d_model: int) -> int:
        return 2 * d_model * self.d_ff

    def activation_bytes(self, d_model: int) -> int:
        """The input, the product before the GELU, and what the last map reads."""
        return BF16 * (d_model + 2 * self.d_ff)
