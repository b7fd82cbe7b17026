"""What the documentation says of a block beyond its fields: equations, papers, an example. No torch.

Equations are Markdown with LaTeX between dollar signs, in the symbols of the field descriptions (D = d_model,
H = n_heads, ...). A kind that is a point of the grid needs none of its own: its page puts together those of its
projection and its patterns, below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Paper:
    """Where a block comes from. arxiv: the number, `2502.11089`."""

    title: str
    arxiv: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class About:
    """The page of a kind, as far as its fields and its cost do not say it.

    equations: what the block computes.  papers: sources.  example: fields of the smallest recipe worth looking at.
    formulas: for a kind with a `cost` of its own, arithmetic in its field names, d_model and seq_len, by what it
    counts: `parameters.PART`, `flops.PART`, `cache.nominal`, `cache.held` (elements). The build holds them to `cost`.
    """

    equations: str = ""
    papers: tuple[Paper, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    formulas: Mapping[str, str] = field(default_factory=dict)


VASWANI = Paper("Attention Is All You Need (Vaswani 2017)", "1706.03762")
ROPE_PAPER = Paper("RoFormer: Enhanced Transformer with Rotary Position Embedding (Su 2021)", "2104.09864")
NOPE_PAPER = Paper("The Impact of Positional Encoding on Length Generalization (Kazemnejad 2023)", "2305.19466")
GQA_PAPER = Paper("GQA: Training Generalized Multi-Query Transformer Models (Ainslie 2023)", "2305.13245")
LONGFORMER = Paper("Longformer: The Long-Document Transformer (Beltagy 2020)", "2004.05150")
MISTRAL = Paper("Mistral 7B (Jiang 2023)", "2310.06825")
DEEPSEEK_V2 = Paper("DeepSeek-V2 (DeepSeek-AI 2024)", "2405.04434")
GLA_PAPER = Paper("Hardware-Efficient Attention for Fast Decoding (Zadouri 2025)", "2505.21487")
BLOCKWISE = Paper("Blockwise Self-Attention for Long Document Understanding (Qiu 2019)", "1911.02972")
NSA_PAPER = Paper("Native Sparse Attention (Yuan 2025)", "2502.11089")
ASA_PAPER = Paper(
    "Optimizing Native Sparse Attention with Latent Attention and Local Global Alternating Strategies (Hu 2025)",
    "2511.00819",
)

# What a projection and its patterns are put together with.
ATTENTION = r"""
Each pattern attends from $q_{t,i}$ to the keys it sees; head $i$ reads the keys and values of its group $g$:

$$
o_{t,i} = \sum_{u \in S_t} p_{t,i}(u)\, v_{u,g} \qquad
p_{t,i}(u) = \underset{u \in S_t}{\operatorname{softmax}} \; s\, q_{t,i} \cdot k_{u,g}
$$

The scale $s$ is $1/\sqrt{d_{qk}}$, or `score_scale` if it is given. With `score_softcap` c, scores $x$ become
$c \tanh(x / c)$ before the softmax. With `sinks`, head $i$ has a learned logit $b_i$ that takes part in the softmax and
has no value: the denominator is $e^{b_i} + \sum_{u \in S_t} e^{x_u}$. It begins at 0; the patterns of a block share it.
With `position_temperature`, queries of position $t$ are multiplied by $1 + a \ln(1 + \lfloor (t + 1) / n \rfloor)$,
where $a$ is its `scale` and $n$ its `every`.
"""
ONE_PATTERN = r"""
The output is $y_t = W_O\, [o_{t,1}; \dots; o_{t,H}]$.
"""
GATED = r"""
Several patterns are combined by one sigmoid gate for each head and pattern:

$$
y_t = W_O\, [\tilde o_{t,1}; \dots; \tilde o_{t,H}] \qquad
\tilde o_{t,i} = \sum_{p} \sigma(W_G\, x_t)_{i,p}\; o^{p}_{t,i}
$$
"""
