"""The projection `gqa`. No torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import GQA_PAPER, About
from zoo.blocks.checked import resolved
from zoo.blocks.cost import BF16
from zoo.blocks.fields import GQAFields, RopeFields, ScoreFields, rotated_channels
from zoo.blocks.projections.base import ProjectionConfig, ResolvedProjection


class GQA(RopeFields, ScoreFields, GQAFields, ProjectionConfig):
    """q = W_Q x, k = W_K x, v = W_V x, rotary embedding on q and k (Ainslie 2023, arXiv 2305.13245).

    n_kv_heads = n_heads is multi-head attention, 1 is multi-query. Cached: rotated k, and v.
    """

    about: ClassVar[About] = About(
        r"""
Head $i$ has its own query; the $H/K$ heads of group $g$ share one key and one value:

$$ q_{t,i} = R_t W_{Q,i}\, x_t \qquad k_{t,g} = R_t W_{K,g}\, x_t \qquad v_{t,g} = W_{V,g}\, x_t $$

$R_t$ rotates by position $t$ (rotary embedding): all channels of a head, or the first `rope_fraction` of them; with
`rope: false` it is left out. With `qkv_bias`, the three maps have biases. With `qk_norm`, queries and keys pass an
RMSNorm, over each head or over all (`qk_norm_over`), before the rotation or after it (`qk_norm_place`), with learned
scales or without (`qk_norm_scale`). Scores are multiplied by $1/\sqrt{d_{qk}}$, or by `score_scale`.
Cached for a token: the rotated $k$ and $v$ of all groups. The width of a score is $d_{qk} = d_n$.
""",
        (GQA_PAPER,),
    )

    kind: Literal["gqa"] = Field("gqa", description="Grouped-query projection.")

    def resolve(self, d_model: int, seq_len: int) -> "ResolvedGQA":
        return resolved(ResolvedGQA, {**dict(self), **self.filled(d_model), "position": self.embedding})


@dataclass(frozen=True)
class ResolvedGQA(ResolvedProjection):
    """`GQA` with every number known."""

    module: ClassVar[str] = "zoo.blocks.projections.gqa:GQAProjection"

    rope_fraction: float
    qkv_bias: bool
    qk_norm: bool
    qk_norm_over: str
    qk_norm_place: str
    qk_norm_scale: bool

    @property
    def qk_dim(self) -> int:
        return self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated, the first ones."""
        return rotated_channels(self.head_dim, self.rope_fraction) if self.position.rotates else 0

    def entries(self) -> dict[str, tuple[int, ...]]:
        return {"key": (self.n_kv_heads, self.head_dim), "value": (self.n_kv_heads, self.v_head_dim)}

    def key_entries(self) -> dict[str, tuple[int, ...]]:
        return {"key": (self.n_kv_heads, self.head_dim)}

    @property
    def rotated_entry(self) -> str | None:
        return "key" if self.position.rotates else None

    def weights(self, d_model: int, n_kv_sets: int) -> dict[str, int]:
        query = d_model * self.n_heads * self.head_dim
        return {"query": query, "key_value": d_model * self.entry_elements * n_kv_sets}

    def biases(self, n_kv_sets: int) -> int:
        return self.n_heads * self.head_dim + self.entry_elements * n_kv_sets if self.qkv_bias else 0

    def norms(self, n_kv_sets: int) -> int:
        if not self.qk_norm or not self.qk_norm_scale:
            return 0
        if self.qk_norm_over == "width":
            return self.head_dim * (self.n_heads + self.n_kv_heads * n_kv_sets)
        return self.head_dim * (1 + n_kv_sets)

    def activation_bytes(self, n_kv_sets: int) -> int:
        queries = BF16 * self.n_heads * self.head_dim
        keys = BF16 * self.n_kv_heads * (self.head_dim + self.v_head_dim) * n_kv_sets
        normed = self.n_heads + self.n_kv_heads * n_kv_sets if self.qk_norm else 0
        return queries + keys + BF16 * self.head_dim * normed

    @property
    def entry_formula(self) -> str:
        return "n_kv_heads*(head_dim + v_head_dim)"

    def weight_formulas(self, separate_kv: bool) -> dict[str, str]:
        sets = "n_patterns*" if separate_kv else ""
        return {"query": "d_model*n_heads*head_dim", "key_value": f"{sets}d_model*{self.entry_formula}"}

    def bias_formula(self, separate_kv: bool) -> str:
        sets = "n_patterns*" if separate_kv else ""
        return f"n_heads*head_dim + {sets}{self.entry_formula}" if self.qkv_bias else ""

    def norm_formula(self, separate_kv: bool) -> str:
        if not self.qk_norm or not self.qk_norm_scale:
            return ""
        if self.qk_norm_over == "width":
            return f"head_dim*(n_heads + {'n_patterns*' if separate_kv else ''}n_kv_heads)"
        return "(1 + n_patterns)*head_dim" if separate_kv else "2*head_dim"
