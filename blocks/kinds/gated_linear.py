"""`gated_linear`: gated linear attention. Called GLA by its paper, which here is grouped latent attention."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count, FieldProblem, Positive, Size
from zoo.blocks.linear.config import ConvSize, LinearConfig, LinearFields, ResolvedLinear, head_problems, share


@dataclass(frozen=True)
class ResolvedGatedLinear(ResolvedLinear):
    """`gated_linear` with every number known."""

    module: ClassVar[str] = "zoo.blocks.linear.gated_linear:GatedLinear"
    title: ClassVar[str] = "gated linear attention"
    delta: ClassVar[bool] = False
    by_channel: ClassVar[bool] = True

    head_dim: int
    decay_rank: int
    decay_temperature: float

    @property
    def key_dim(self) -> int:
        return self.head_dim

    def rows(self) -> dict[str, int]:
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        return {"query": keys, "key": keys, "value": values, "gate": values, "decay_latent": self.decay_rank}

    def maps(self) -> dict[str, tuple[int, int]]:
        return {"decay": (self.decay_rank, self.n_heads * self.head_dim)}

    def vectors(self) -> dict[str, int]:
        return {"rates": self.n_heads * self.head_dim, "norm": self.v_head_dim}


class GatedLinearConfig(LinearFields, LinearConfig):
    """Gated linear attention (Yang 2023, arXiv 2312.06635): a state whose key channels decay by a gate of the token.

    Not `gla`, grouped latent attention. The defaults of the widths are the paper's: keys half as wide as values.
    """

    resolved: ClassVar[type[ResolvedLinear]] = ResolvedGatedLinear
    about: ClassVar[About] = About(
        r"""
A head keeps a matrix $S_t \in \mathbb{R}^{d_n \times d_v}$ in place of keys and values. Each of its rows decays by
a gate:

$$
S_t = \operatorname{diag}(a_t)\, S_{t-1} + k_t v_t^\top \qquad o_t = \frac{1}{\sqrt{d_n}} S_t^\top q_t \qquad
a_t = \sigma(W_{A2} W_{A1}\, x_t + b)^{1/\tau}
$$

Queries, keys and values are linear in $x$; with `conv_size` they pass a short convolution and a SiLU first. The output
is $y_t = W_O\, [\operatorname{RMSNorm}(o_t) \odot \operatorname{silu}(W_R\, x_t)]$, the norm over each head.
""",
        (Paper("Gated Linear Attention Transformers with Hardware-Efficient Training (Yang 2023)", "2312.06635"),),
        example={"n_heads": 4, "head_dim": 32, "v_head_dim": 64},
        formulas={
            "parameters.input": "d_model*(2*n_heads*head_dim + 2*n_heads*v_head_dim + decay_rank)",
            "parameters.decay": "decay_rank*n_heads*head_dim",
            "parameters.output": "n_heads*v_head_dim*d_model",
            "parameters.rates": "n_heads*head_dim",
            "parameters.norm": "v_head_dim",
            "flops.input": "2*seq_len*d_model*(2*n_heads*head_dim + 2*n_heads*v_head_dim + decay_rank)",
            "flops.decay": "2*seq_len*decay_rank*n_heads*head_dim",
            "flops.state": "4*seq_len*n_heads*head_dim*v_head_dim",
            "flops.output": "2*seq_len*n_heads*v_head_dim*d_model",
            "cache.nominal": "n_heads*head_dim*v_head_dim",
            "cache.state": "n_heads*head_dim*v_head_dim",
        },
    )

    kind: Literal["gated_linear"] = Field("gated_linear", description="Gated linear attention.")
    n_heads: Count = Field(4, description="Heads H, each with a state of its own.")
    head_dim: Size | None = Field(None, description="Channels of a query or key head. Default: d_model / (2 n_heads).")
    v_head_dim: Size | None = Field(None, description="Channels of a value head. Default: d_model / n_heads.")
    conv_size: ConvSize = Field(
        0, description="Tokens of a short convolution on queries, keys and values; 0: no convolution."
    )
    decay_rank: Size = Field(16, description="Width of the latent that the gates of the decay are made from.")
    decay_temperature: Positive = Field(
        16.0, description="Gates are raised to the power 1 / tau; a larger tau makes the state decay more slowly."
    )

    def filled(self, d_model: int | None) -> dict[str, Any]:
        return {
            "head_dim": self.head_dim or share(d_model, 2 * self.n_heads),
            "v_head_dim": self.v_head_dim or share(d_model, self.n_heads),
        }

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model) + head_problems(self, d_model, self.n_heads, "v_head_dim")
        if d_model is not None and self.head_dim is None and d_model % (2 * self.n_heads):
            why = f"twice it must divide d_model ({d_model}) where head_dim is not given"
            found.append((("n_heads",), f"{why}; found {self.n_heads}"))
        return found
