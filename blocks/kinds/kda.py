"""`kda`: Kimi Delta Attention."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count, FieldProblem, Size
from zoo.blocks.linear.config import KeyDim, LinearConfig, LinearFields, ResolvedLinear, ValueDim, head_problems, share


@dataclass(frozen=True)
class ResolvedKDA(ResolvedLinear):
    """`kda` with every number known."""

    module: ClassVar[str] = "zoo.blocks.linear.kda:KimiDelta"
    title: ClassVar[str] = "Kimi delta attention"
    delta: ClassVar[bool] = True
    by_channel: ClassVar[bool] = True

    head_dim: int
    decay_rank: int
    gate_rank: int

    @property
    def key_dim(self) -> int:
        return self.head_dim

    def rows(self) -> dict[str, int]:
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        latents = {"decay_latent": self.decay_rank, "gate_latent": self.gate_rank}
        return {"query": keys, "key": keys, "value": values, "beta": self.n_heads, **latents}

    def maps(self) -> dict[str, tuple[int, int]]:
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.v_head_dim
        return {"decay": (self.decay_rank, keys), "gate": (self.gate_rank, values)}

    def vectors(self) -> dict[str, int]:
        return {"rates": self.n_heads * self.head_dim + self.n_heads, "norm": self.v_head_dim}


class KDAConfig(LinearFields, LinearConfig):
    """Kimi Delta Attention (Kimi Linear, arXiv 2510.26692): the gated delta rule with a decay for each channel."""

    resolved: ClassVar[type[ResolvedLinear]] = ResolvedKDA
    about: ClassVar[About] = About(
        r"""
A head keeps a matrix $S_t \in \mathbb{R}^{d_n \times d_v}$ in place of keys and values. A token decays each row of it
at a rate of its own, takes out what it then holds for the token's key, and puts in the token's value:

$$
S_t = (I - b_t k_t k_t^\top) \operatorname{diag}(a_t)\, S_{t-1} + b_t k_t v_t^\top \qquad
o_t = \frac{1}{\sqrt{d_n}} S_t^\top q_t
$$

$$
a_t = \exp(-e^{A} \operatorname{softplus}(W_{A2} W_{A1}\, x_t + c)) \qquad b_t = \sigma(W_B\, x_t)
$$

Queries, keys and values are linear in $x$ and pass a short convolution over `conv_size` tokens and a SiLU; queries and
keys are then scaled to length 1. The output is
$y_t = W_O\, [\operatorname{RMSNorm}(o_t) \odot \sigma(W_{G2} W_{G1}\, x_t)]$, the norm over each head.
""",
        (Paper("Kimi Linear: An Expressive, Efficient Attention Architecture (Kimi Team 2025)", "2510.26692"),),
        example={"n_heads": 4, "head_dim": 32, "v_head_dim": 64, "decay_rank": 32, "gate_rank": 64},
        formulas={
            "parameters.input": "d_model*(2*n_heads*head_dim + n_heads*v_head_dim + n_heads + decay_rank + gate_rank)",
            "parameters.decay": "decay_rank*n_heads*head_dim",
            "parameters.gate": "gate_rank*n_heads*v_head_dim",
            "parameters.output": "n_heads*v_head_dim*d_model",
            "parameters.convolution": "conv_size*n_heads*(2*head_dim + v_head_dim)",
            "parameters.rates": "n_heads*head_dim + n_heads",
            "parameters.norm": "v_head_dim",
            "flops.input": "2*seq_len*d_model*(2*n_heads*head_dim + n_heads*v_head_dim + n_heads + decay_rank"
            " + gate_rank)",
            "flops.decay": "2*seq_len*decay_rank*n_heads*head_dim",
            "flops.gate": "2*seq_len*gate_rank*n_heads*v_head_dim",
            "flops.state": "6*seq_len*n_heads*head_dim*v_head_dim",
            "flops.output": "2*seq_len*n_heads*v_head_dim*d_model",
            "cache.nominal": "n_heads*head_dim*v_head_dim + (conv_size - 1)*n_heads*(2*head_dim + v_head_dim)",
            "cache.held": "(conv_size - 1)*n_heads*(2*head_dim + v_head_dim)",
            "cache.state": "n_heads*head_dim*v_head_dim",
        },
    )

    kind: Literal["kda"] = Field("kda", description="Kimi Delta Attention.")
    n_heads: Count = Field(8, description="Heads H, each with a state of its own.")
    head_dim: KeyDim = None
    v_head_dim: ValueDim = None
    decay_rank: Size | None = Field(
        None, description="Width of the latent that the decays are made from. Default: head_dim."
    )
    gate_rank: Size | None = Field(
        None, description="Width of the latent that the output gates are made from. Default: v_head_dim."
    )

    def filled(self, d_model: int | None) -> dict[str, Any]:
        head_dim = self.head_dim or share(d_model, self.n_heads)
        v_head_dim = self.v_head_dim or head_dim
        ranks = {"decay_rank": self.decay_rank or head_dim, "gate_rank": self.gate_rank or v_head_dim}
        return {"head_dim": head_dim, "v_head_dim": v_head_dim, **ranks}

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        return super().problems(d_model) + head_problems(self, d_model, self.n_heads, "head_dim")
