"""`lightning`: linear attention whose heads decay at fixed rates, as in MiniMax-01."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count, FieldProblem, Flag
from zoo.blocks.linear.config import (
    ConvSize,
    KeyDim,
    LinearConfig,
    LinearFields,
    ResolvedLinear,
    ValueDim,
    head_problems,
    share,
)


@dataclass(frozen=True)
class ResolvedLightning(ResolvedLinear):
    """`lightning` with every number known."""

    module: ClassVar[str] = "zoo.blocks.linear.lightning:Lightning"
    title: ClassVar[str] = "lightning attention"
    delta: ClassVar[bool] = False
    by_channel: ClassVar[bool] = False

    head_dim: int
    decay_by_depth: bool

    @property
    def key_dim(self) -> int:
        return self.head_dim

    def rows(self) -> dict[str, int]:
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        return {"query": keys, "key": keys, "value": values, "gate": values}

    def vectors(self) -> dict[str, int]:
        return {"norm": self.n_heads * self.v_head_dim}


class LightningConfig(LinearFields, LinearConfig):
    """Lightning attention (Qin 2024, arXiv 2401.04658) as in MiniMax-01: a state that decays at a fixed rate per head.

    Named after the way it is computed, in chunks; what is computed is TransNormerLLM's linear attention.
    """

    resolved: ClassVar[type[ResolvedLinear]] = ResolvedLightning
    about: ClassVar[About] = About(
        r"""
A head keeps a matrix $S_t \in \mathbb{R}^{d_n \times d_v}$ in place of keys and values, which decays at a rate that
is not learned. Head h of H, in layer l of L, both counted as the formulas show:

$$
S_t = e^{-r} S_{t-1} + k_t v_t^\top \qquad o_t = S_t^\top q_t \qquad
r = 2^{-8 h / H} \left(1 - \frac{l}{L - 1}\right), \quad h = 1 \ldots H, \quad l = 0 \ldots L - 1
$$

Queries, keys and values are linear in $x$ and pass a SiLU. With `decay_by_depth: false` the bracket is 1; with it, the
last layer forgets almost nothing. (MiniMax-01's code adds $10^{-5}$ to the bracket and to $L - 1$, and so does this.)
The output is $y_t = W_O\, [\operatorname{RMSNorm}(o_t) \odot \sigma(W_G\, x_t)]$, the norm over all heads together.
""",
        (
            Paper("Lightning Attention-2 (Qin 2024)", "2401.04658"),
            Paper("MiniMax-01: Scaling Foundation Models with Lightning Attention (MiniMax 2025)", "2501.08313"),
        ),
        example={"n_heads": 4, "head_dim": 32, "v_head_dim": 64},
        formulas={
            "parameters.input": "d_model*(2*n_heads*head_dim + 2*n_heads*v_head_dim)",
            "parameters.output": "n_heads*v_head_dim*d_model",
            "parameters.norm": "n_heads*v_head_dim",
            "flops.input": "2*seq_len*d_model*(2*n_heads*head_dim + 2*n_heads*v_head_dim)",
            "flops.state": "4*seq_len*n_heads*head_dim*v_head_dim",
            "flops.output": "2*seq_len*n_heads*v_head_dim*d_model",
            "cache.nominal": "n_heads*head_dim*v_head_dim",
            "cache.state": "n_heads*head_dim*v_head_dim",
        },
    )

    kind: Literal["lightning"] = Field("lightning", description="Linear attention with fixed decays.")
    n_heads: Count = Field(8, description="Heads H, each with a state of its own.")
    head_dim: KeyDim = None
    v_head_dim: ValueDim = None
    conv_size: ConvSize = Field(
        0, description="Tokens of a short convolution on queries, keys and values; 0: no convolution."
    )
    decay_by_depth: Flag = Field(True, description="Rates fall from the first layer to the last, as in MiniMax-01.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        head_dim = self.head_dim or share(d_model, self.n_heads)
        return {"head_dim": head_dim, "v_head_dim": self.v_head_dim or head_dim}

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        return super().problems(d_model) + head_problems(self, d_model, self.n_heads, "head_dim")
