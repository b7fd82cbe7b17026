"""`mamba2`: the state space model of Mamba-2."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count, FieldProblem, Size
from zoo.blocks.linear.config import LinearConfig, LinearFields, ResolvedLinear


@dataclass(frozen=True)
class ResolvedMamba2(ResolvedLinear):
    """`mamba2` with every number known."""

    module: ClassVar[str] = "zoo.blocks.linear.mamba2:Mamba2"
    title: ClassVar[str] = "Mamba-2"
    delta: ClassVar[bool] = False
    by_channel: ClassVar[bool] = False
    conv_bias: ClassVar[bool] = True

    n_groups: int
    state_dim: int

    @property
    def key_dim(self) -> int:
        return self.state_dim

    def rows(self) -> dict[str, int]:
        keys, values = self.n_groups * self.state_dim, self.n_heads * self.v_head_dim
        return {"query": keys, "key": keys, "value": values, "gate": values, "decay": self.n_heads}

    def vectors(self) -> dict[str, int]:
        return {
            "rates": 2 * self.n_heads,
            "skip": self.n_heads,
            "norm": self.n_heads * self.v_head_dim,
        }


class Mamba2Config(LinearFields, LinearConfig):
    """Mamba-2 (Dao 2024, arXiv 2405.21060): a state space with one decay for each head and token.

    C, B and x of the paper are queries, keys and values; `state_dim` is its N, `v_head_dim` its P. Without
    `n_heads` there are as many heads as make the values twice as wide as the model.
    """

    resolved: ClassVar[type[ResolvedLinear]] = ResolvedMamba2
    about: ClassVar[About] = About(
        r"""
A head keeps a matrix $S_t \in \mathbb{R}^{N \times d_v}$, the state of a linear system with inputs $x_t$:

$$
S_t = a_t\, S_{t-1} + B_t\, (d_t\, x_t)^\top \qquad o_t = S_t^\top C_t + E\, x_t
$$

$$ d_t = \operatorname{softplus}(W_D\, u_t + c) \qquad a_t = \exp(-e^{A}\, d_t) $$

$u$ is the layer's input. $C$, $B$ and $x$ are linear in it and pass a short convolution over `conv_size` tokens with a
bias, and a SiLU. The heads of a group share $C$ and $B$. The output is
$y_t = W_O \operatorname{RMSNorm}(o_t \odot \operatorname{silu}(W_Z\, u_t))$, the norm over all heads of a group.
""",
        (Paper("Transformers are SSMs (Dao 2024)", "2405.21060"),),
        example={"n_heads": 8, "n_groups": 1, "state_dim": 32, "v_head_dim": 64},
        formulas={
            "parameters.input": "d_model*(2*n_groups*state_dim + 2*n_heads*v_head_dim + n_heads)",
            "parameters.output": "n_heads*v_head_dim*d_model",
            "parameters.convolution": "(conv_size + 1)*(2*n_groups*state_dim + n_heads*v_head_dim)",
            "parameters.rates": "2*n_heads",
            "parameters.skip": "n_heads",
            "parameters.norm": "n_heads*v_head_dim",
            "flops.input": "2*seq_len*d_model*(2*n_groups*state_dim + 2*n_heads*v_head_dim + n_heads)",
            "flops.state": "4*seq_len*n_heads*state_dim*v_head_dim",
            "flops.output": "2*seq_len*n_heads*v_head_dim*d_model",
            "cache.nominal": "n_heads*state_dim*v_head_dim + (conv_size - 1)*(2*n_groups*state_dim"
            " + n_heads*v_head_dim)",
            "cache.held": "(conv_size - 1)*(2*n_groups*state_dim + n_heads*v_head_dim)",
            "cache.state": "n_heads*state_dim*v_head_dim",
        },
    )

    kind: Literal["mamba2"] = Field("mamba2", description="Mamba-2.")
    n_heads: Count | None = Field(
        None, description="Heads H, each with a state of its own. Default: 2 d_model / v_head_dim."
    )
    n_groups: Count = Field(1, description="Groups of heads that share queries and keys (C and B).")
    state_dim: Size = Field(128, description="Channels N of a query or key.")
    v_head_dim: Size = Field(64, description="Channels of a value head.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        default = None if d_model is None or 2 * d_model % self.v_head_dim else 2 * d_model // self.v_head_dim
        return {"n_heads": self.n_heads or default}

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found, n_heads = super().problems(d_model), self.filled(d_model)["n_heads"]
        if d_model is not None and n_heads is None:
            why = f"must divide 2 d_model ({2 * d_model}) where n_heads is not given"
            found.append((("v_head_dim",), f"{why}; found {self.v_head_dim}"))
        if n_heads and n_heads % self.n_groups:
            found.append((("n_groups",), f"must divide n_heads ({n_heads}); found {self.n_groups}"))
        return found
