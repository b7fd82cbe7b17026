"""`gated_deltanet`: the gated delta rule, as in Qwen3-Next."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count, FieldProblem, Flag
from zoo.blocks.linear.config import KeyDim, LinearConfig, LinearFields, ResolvedLinear, ValueDim, head_problems, share


@dataclass(frozen=True)
class ResolvedGatedDeltaNet(ResolvedLinear):
    """`gated_deltanet` with every number known."""

    module: ClassVar[str] = "zoo.blocks.linear.gated_deltanet:GatedDeltaNet"
    title: ClassVar[str] = "gated DeltaNet"
    delta: ClassVar[bool] = True
    by_channel: ClassVar[bool] = False

    n_key_heads: int
    head_dim: int
    negative_eigenvalues: bool

    @property
    def key_dim(self) -> int:
        return self.head_dim

    def rows(self) -> dict[str, int]:
        keys, values = self.n_key_heads * self.head_dim, self.n_heads * self.v_head_dim
        of_head = {"beta": self.n_heads, "decay": self.n_heads}
        return {"query": keys, "key": keys, "value": values, "gate": values, **of_head}

    def vectors(self) -> dict[str, int]:
        return {"rates": 2 * self.n_heads, "norm": self.v_head_dim}


class GatedDeltaNetConfig(LinearFields, LinearConfig):
    """Gated DeltaNet (Yang 2024, arXiv 2412.06464): a state that decays, and replaces what it holds for a key.

    Heads as in Qwen3-Next, whose queries and keys may be fewer than its values. The paper's own widths are head_dim
    3/4 d_model / n_heads and v_head_dim twice that; the defaults here are d_model / n_heads for both.
    """

    resolved: ClassVar[type[ResolvedLinear]] = ResolvedGatedDeltaNet
    about: ClassVar[About] = About(
        r"""
A head keeps a matrix $S_t \in \mathbb{R}^{d_n \times d_v}$ in place of keys and values. A token decays it, takes out
what it holds for the token's key, and puts in the token's value:

$$
S_t = a_t (I - b_t k_t k_t^\top)\, S_{t-1} + b_t k_t v_t^\top \qquad o_t = \frac{1}{\sqrt{d_n}} S_t^\top q_t
$$

$$
a_t = \exp(-e^{A} \operatorname{softplus}(W_A\, x_t + c)) \qquad b_t = \sigma(W_B\, x_t)
$$

Queries, keys and values are linear in $x$ and pass a short convolution over `conv_size` tokens and a SiLU; queries and
keys are then scaled to length 1. With `negative_eigenvalues`, $b_t$ is doubled, so that a state can change its sign
along a key (arXiv 2411.12537). The output is
$y_t = W_O\, [\operatorname{RMSNorm}(o_t) \odot \operatorname{silu}(W_G\, x_t)]$, the norm over each head.
""",
        (
            Paper("Gated Delta Networks: Improving Mamba2 with Delta Rule (Yang 2024)", "2412.06464"),
            Paper("Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues (Grazzi 2024)", "2411.12537"),
        ),
        example={"n_heads": 4, "n_key_heads": 2, "head_dim": 32, "v_head_dim": 64},
        formulas={
            "parameters.input": "d_model*(2*n_key_heads*head_dim + 2*n_heads*v_head_dim + 2*n_heads)",
            "parameters.output": "n_heads*v_head_dim*d_model",
            "parameters.convolution": "conv_size*(2*n_key_heads*head_dim + n_heads*v_head_dim)",
            "parameters.rates": "2*n_heads",
            "parameters.norm": "v_head_dim",
            "flops.input": "2*seq_len*d_model*(2*n_key_heads*head_dim + 2*n_heads*v_head_dim + 2*n_heads)",
            "flops.state": "6*seq_len*n_heads*head_dim*v_head_dim",
            "flops.output": "2*seq_len*n_heads*v_head_dim*d_model",
            "cache.nominal": "n_heads*head_dim*v_head_dim + (conv_size - 1)*(2*n_key_heads*head_dim"
            " + n_heads*v_head_dim)",
            "cache.held": "(conv_size - 1)*(2*n_key_heads*head_dim + n_heads*v_head_dim)",
            "cache.state": "n_heads*head_dim*v_head_dim",
        },
    )

    kind: Literal["gated_deltanet"] = Field("gated_deltanet", description="The gated delta rule.")
    n_heads: Count = Field(8, description="Value heads H, each with a state of its own.")
    n_key_heads: Count | None = Field(
        None, description="Query and key heads K; H/K value heads share one. Default: n_heads."
    )
    head_dim: KeyDim = None
    v_head_dim: ValueDim = None
    negative_eigenvalues: Flag = Field(False, description="Gates b of the delta rule go up to 2 instead of 1.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        head_dim = self.head_dim or share(d_model, self.n_heads)
        values = {"head_dim": head_dim, "v_head_dim": self.v_head_dim or head_dim}
        return {"n_key_heads": self.n_key_heads or self.n_heads, **values}

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model) + head_problems(self, d_model, self.n_heads, "head_dim")
        if self.n_key_heads and self.n_heads % self.n_key_heads:
            found.append((("n_key_heads",), f"must divide n_heads ({self.n_heads}); found {self.n_key_heads}"))
        return found
