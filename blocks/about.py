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
GQA_PAPER = Paper("GQA: Training Generalized Multi-Query Transformer Models (Ainslie 2023)", "2305.13245")
LONGFORMER = Paper("Longformer: The Long-Document Transformer (Beltagy 2020)", "2004.05150")
MISTRAL = Paper("Mistral 7B (Jiang 2023)", "2310.06825")
DEEPSEEK_V2 = Paper("DeepSeek-V2 (DeepSeek-AI 2024)", "2405.04434")
GLA_PAPER = Paper("Hardware-Efficient Attention for Fast Decoding (Zadouri 2025)", "2505.21487")
NSA_PAPER = Paper("Native Sparse Attention (Yuan 2025)", "2502.11089")
ASA_PAPER = Paper(
    "Optimizing Native Sparse Attention with Latent Attention and Local Global Alternating Strategies (Hu 2025)",
    "2511.00819",
)

_GQA = r"""
Head $i$ has its own query; the $H/K$ heads of group $g$ share one key and one value:

$$ q_{t,i} = R_t W_{Q,i}\, x_t \qquad k_{t,g} = R_t W_{K,g}\, x_t \qquad v_{t,g} = W_{V,g}\, x_t $$

$R_t$ rotates by position $t$ (rotary embedding). With `qk_norm`, every query and key head passes an RMSNorm before it.
Cached for a token: the rotated $k$ and $v$ of all groups. The width of a score is $d_{qk} = d_n$.
"""

_LATENT = r"""
Keys and values are made from a small latent, and one rotary key is shared by all heads:

$$
c_t = \operatorname{RMSNorm}(W_{DKV}\, x_t) \in \mathbb{R}^{r} \qquad k^R_t = R_t W_{KR}\, x_t \in \mathbb{R}^{d_r}
$$

$$ q_{t,i} = [\, W_{Q,i}\, x_t \;;\; R_t W_{QR,i}\, x_t \,] $$
"""
_LATENT_END = r"""
With `q_rank`, queries come from a latent of their own, $c^Q_t = \operatorname{RMSNorm}(W_{DQ}\, x_t)$, in place of
$x_t$. Cached for a token: $c_t$ and $k^R_t$. The width of a score is $d_{qk} = d_n + d_r$.
"""
_MLA = (
    _LATENT
    + r"""
$$ k_{t,i} = [\, W_{UK,i}\, c_t \;;\; k^R_t \,] \qquad v_{t,i} = W_{UV,i}\, c_t $$
"""
    + _LATENT_END
)
_GLA = (
    _LATENT
    + r"""
The latent is cut into $C$ latent heads $c_{t,j}$ of $r/C$ channels, each with its own norm. Key/value group $g$ reads
one of them, and the $H/K$ query heads of the group share its key and value:

$$
k_{t,g} = [\, W_{UK,g}\, c_{t,j} \;;\; k^R_t \,] \qquad
v_{t,g} = W_{UV,g}\, c_{t,j} \qquad
j = \lfloor g\, C / K \rfloor
$$
"""
    + _LATENT_END
)

# By the `kind` of a projection (GQA, MLA, GLA) and of a pattern in blocks/config.py.
PROJECTIONS = {
    "gqa": About(_GQA, (GQA_PAPER,)),
    "mla": About(_MLA, (DEEPSEEK_V2,)),
    "gla": About(_GLA, (GLA_PAPER,)),
}
PATTERNS = {
    "full": About(
        r"""
A query sees every key up to its own: $S_t = \{0, \dots, t\}$.
""",
        (VASWANI,),
    ),
    "window": About(
        r"""
A query sees the latest $w$ keys, its own included: $S_t = \{\max(0,\, t - w + 1), \dots, t\}$.
""",
        (LONGFORMER, MISTRAL),
    ),
    "compression": About(
        r"""
Keys and values are pooled over blocks $j = 0, 1, \dots$ of $l$ tokens, one every $s$ tokens; with `pooling: mean`

$$
\bar k_{j,g} = \frac{1}{l} \sum_{u = js}^{js + l - 1} k_{u,g} \qquad
\bar v_{j,g} = \frac{1}{l} \sum_{u = js}^{js + l - 1} v_{u,g}
$$

A query sees the blocks that lie wholly in its past: $S_t = \{\, j \mid js + l - 1 \le t \,\}$. Where there is none yet,
the branch gives zeros. With `pooling: mlp`, a learned embedding of the offset is added and a two-layer MLP maps the
block to one entry.
""",
        (NSA_PAPER,),
    ),
    "selection": About(
        r"""
The scores of compression say which tokens to read in full. With $p_{t,i}(j)$ the weight that head $i$ gives compression
block $j$, the importance for group $g$ of the selection block of tokens $[mb,\, (m + 1)b)$ is

$$
I_{t,g}(m) = \sum_{a=0}^{b/s - 1} \; \sum_{c=0}^{l/s - 1} \; \sum_{i \in g}
p_{t,i}\left(\frac{b}{s} m + a - c\right)
$$

The first `n_init` blocks and the latest `n_local` are always chosen; the other places of $n$ go to the highest
importances (ties to the lower index) among blocks that begin at or before $t$. Then

$$ S_{t,g} = \{\, u \le t \mid \lfloor u/b \rfloor \text{ is chosen} \,\} $$

Queries with the same $\lfloor t/q \rfloor$ use the choice made for the first of them. No gradient flows through it.
""",
        (NSA_PAPER,),
    ),
}
# What a projection and its patterns are put together with.
ATTENTION = r"""
Each pattern attends from $q_{t,i}$ to the keys it sees; head $i$ reads the keys and values of its group $g$:

$$
o_{t,i} = \sum_{u \in S_t} p_{t,i}(u)\, v_{u,g} \qquad
p_{t,i}(u) = \underset{u \in S_t}{\operatorname{softmax}} \; \frac{q_{t,i} \cdot k_{u,g}}{\sqrt{d_{qk}}}
$$
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
