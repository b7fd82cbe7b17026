"""The feed-forwards that use every parameter for every token: `swiglu`, `geglu`, `gelu` and `relu2`. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Flag
from zoo.blocks.cost import BF16
from zoo.feed_forward.base import Count, FeedForwardConfig


class Dense(FeedForwardConfig):
    """What the kinds share: a hidden layer of `d_ff`, made by `n_in` maps of the input, and a map back."""

    n_in: ClassVar[int] = 1  # maps that read the input
    activation: ClassVar[str]  # key of zoo.feed_forward.dense.ACTIVATIONS; a property where a field decides

    d_ff: Count = Field(description="Width of the hidden layer.")
    bias: Flag = Field(False, description="Biases on every linear map.")

    def describe(self) -> str:
        return f"{self.kind} {self.d_ff:,}"

    def parameters(self, d_model: int) -> int:
        return self._weights(d_model) + (self.n_in * self.d_ff + d_model if self.bias else 0)

    def flops(self, d_model: int) -> float:
        return 2.0 * self._weights(d_model)

    def _weights(self, d_model: int) -> int:
        return (self.n_in + 1) * d_model * self.d_ff


class Gated(Dense):
    """W_down(f(W_gate x) * W_up x), with an activation f."""

    n_in: ClassVar[int] = 2
    module: ClassVar[str] = "zoo.feed_forward.dense:GatedModule"

    def activation_bytes(self, d_model: int) -> int:
        """The input, both products, the activated gate, and what the last map reads."""
        return BF16 * (d_model + 4 * self.d_ff)


class Ungated(Dense):
    """W_down f(W_up x), with an activation f."""

    module: ClassVar[str] = "zoo.feed_forward.dense:DenseModule"

    def activation_bytes(self, d_model: int) -> int:
        """The input, what the activation keeps, and what the last map reads."""
        return BF16 * (d_model + 2 * self.d_ff)


GELUForm = Literal["exact", "tanh"]
_FORM = "exact: x Phi(x); tanh: the approximation that GPT-2 and Gemma use."
_GLU = Paper("GLU Variants Improve Transformer (Shazeer 2020)", "2002.05202")
_GELU = Paper("Gaussian Error Linear Units (Hendrycks 2016)", "1606.08415")


class SwiGLU(Gated):
    """W_down(silu(W_gate x) * W_up x): three matrices (Shazeer 2020, arXiv 2002.05202)."""

    module: ClassVar[str] = "zoo.feed_forward.dense:SwiGLUModule"
    activation: ClassVar[str] = "silu"
    about: ClassVar[About] = About(
        r"""
$$ y = W_{down}\,(\operatorname{silu}(W_{gate}\, x) \odot W_{up}\, x) $$
""",
        (_GLU,),
        example={"d_ff": 704},
    )

    kind: Literal["swiglu"] = Field("swiglu", description="Gated with SiLU, three matrices.")

    def activation_bytes(self, d_model: int) -> int:
        """The input, and both products before the gate; what the last map reads is made again in the backward.

        With biases the fused operation does not run, and everything is kept.
        """
        return super().activation_bytes(d_model) if self.bias else BF16 * (d_model + 2 * self.d_ff)


class GeGLU(Gated):
    """W_down(gelu(W_gate x) * W_up x): three matrices, as in Gemma (Shazeer 2020, arXiv 2002.05202)."""

    about: ClassVar[About] = About(
        r"""
$$ y = W_{down}\,(\operatorname{gelu}(W_{gate}\, x) \odot W_{up}\, x) $$
""",
        (_GLU, _GELU),
        example={"d_ff": 704, "gelu": "tanh"},
    )

    kind: Literal["geglu"] = Field("geglu", description="Gated with GELU, three matrices.")
    gelu: GELUForm = Field("exact", description=_FORM)

    @property
    def activation(self) -> str:  # type: ignore[override] # a ClassVar where no field decides
        return f"gelu_{self.gelu}"


class GELU(Ungated):
    """W_down gelu(W_up x): two matrices (Hendrycks 2016, arXiv 1606.08415)."""

    about: ClassVar[About] = About(
        r"""
$$ y = W_{down} \operatorname{gelu}(W_{up}\, x) $$
""",
        (_GELU,),
        example={"d_ff": 1024},
    )

    kind: Literal["gelu"] = Field("gelu", description="GELU, two matrices.")
    gelu: GELUForm = Field("exact", description=_FORM)

    @property
    def activation(self) -> str:  # type: ignore[override] # a ClassVar where no field decides
        return f"gelu_{self.gelu}"


class ReLU2(Ungated):
    """W_down relu(W_up x)^2: two matrices, hidden values that are mostly 0 (So 2021, arXiv 2109.08668)."""

    activation: ClassVar[str] = "relu2"
    about: ClassVar[About] = About(
        r"""
$$ y = W_{down}\, \max(0, W_{up}\, x)^2 $$
""",
        (Paper("Primer: Searching for Efficient Transformers for Language Modeling (So 2021)", "2109.08668"),),
        example={"d_ff": 1024},
    )

    kind: Literal["relu2"] = Field("relu2", description="Squared ReLU, two matrices.")
