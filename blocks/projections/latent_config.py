"""The projections `mla` and `gla`, which cache a small latent. No torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import DEEPSEEK_V2, GLA_PAPER, About
from zoo.blocks.checked import resolved
from zoo.blocks.cost import BF16
from zoo.blocks.fields import GroupedLatentFields, LatentFields, RopeFields, ScoreFields
from zoo.blocks.projections.base import ProjectionConfig, ResolvedProjection

_LATENT = r"""
Keys and values are made from a small latent, and one rotary key is shared by all heads:

$$
c_t = \operatorname{RMSNorm}(W_{DKV}\, x_t) \in \mathbb{R}^{r} \qquad k^R_t = R_t W_{KR}\, x_t \in \mathbb{R}^{d_r}
$$

$$ q_{t,i} = [\, W_{Q,i}\, x_t \;;\; R_t W_{QR,i}\, x_t \,] $$
"""
_LATENT_END = r"""
With `rope_dim: 0` there are no rotary parts; with `rope: false` they are not rotated. With `q_rank`, queries come from
a latent of their own, $c^Q_t = \operatorname{RMSNorm}(W_{DQ}\, x_t)$, in place of $x_t$. Cached for a token: $c_t$ and
$k^R_t$. Both latents are multiplied by a number after their norm if `latent_scale` and `q_latent_scale` say so. With
`latent_norm: false` the latent is $W_{DKV}\, x_t$ itself, as in layers that `zoo convert` makes of
grouped-query attention. The width of a score is $d_{qk} = d_n + d_r$.
"""
_SHARES_KV = "makes all keys and values from the one cached latent"


class MLA(RopeFields, ScoreFields, LatentFields, ProjectionConfig):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): GLA with one latent head and K = H."""

    shares_kv: ClassVar[str] = _SHARES_KV
    about: ClassVar[About] = About(
        _LATENT
        + r"""
$$ k_{t,i} = [\, W_{UK,i}\, c_t \;;\; k^R_t \,] \qquad v_{t,i} = W_{UV,i}\, c_t $$
"""
        + _LATENT_END,
        (DEEPSEEK_V2,),
    )

    kind: Literal["mla"] = Field("mla", description="Multi-head latent projection.")

    def resolve(self, d_model: int, seq_len: int) -> "ResolvedLatent":
        single = {"n_kv_heads": self.n_heads, "n_latent_heads": 1}
        return resolved(ResolvedLatent, {**dict(self), **self.filled(d_model), "position": self.embedding, **single})


class GLA(RopeFields, ScoreFields, GroupedLatentFields, ProjectionConfig):
    """Grouped latent attention (Zadouri 2025, arXiv 2505.21487). Not gated linear attention, which fla calls GLA.

    Latent head j is RMSNorm(W_DKV x)_j; group g reads its latent head: k_g = [W_UK,g c_j ; k_R], v_g = W_UV,g c_j.
    Cached: the latent and the rotary key that all heads share.
    """

    shares_kv: ClassVar[str] = _SHARES_KV
    about: ClassVar[About] = About(
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
        + _LATENT_END,
        (GLA_PAPER,),
    )

    kind: Literal["gla"] = Field("gla", description="Grouped latent projection.")

    def resolve(self, d_model: int, seq_len: int) -> "ResolvedLatent":
        return resolved(ResolvedLatent, {**dict(self), **self.filled(d_model), "position": self.embedding})


@dataclass(frozen=True)
class ResolvedLatent(ResolvedProjection):
    """`MLA` or `GLA` with every number known. q_rank None: queries come straight from x."""

    module: ClassVar[str] = "zoo.blocks.projections.latent:LatentProjection"

    rope_dim: int
    kv_rank: int
    n_latent_heads: int
    q_rank: int | None
    latent_norm: bool
    latent_scale: float
    q_latent_scale: float

    @property
    def qk_dim(self) -> int:
        return self.head_dim + self.rope_dim

    def entries(self) -> dict[str, tuple[int, ...]]:
        latent: dict[str, tuple[int, ...]] = {"latent": (self.n_latent_heads, self.kv_rank // self.n_latent_heads)}
        return latent | {"rope_key": (self.rope_dim,)} if self.rope_dim else latent

    @property
    def rotated_entry(self) -> str | None:
        return "rope_key" if self.position.rotates and self.rope_dim else None

    @property
    def scale(self) -> float:
        """With YaRN's mscale_all_dim the default grows by mscale^2, as in DeepSeek's code."""
        return self.qk_dim**-0.5 * self.position.score_factor if self.score_scale is None else self.score_scale

    @property
    def shared_key_dim(self) -> int:
        return self.rope_dim

    @property
    def expanded_elements(self) -> int:
        return self.n_kv_heads * (self.head_dim + self.v_head_dim)

    def weights(self, d_model: int, n_kv_sets: int) -> dict[str, int]:
        rank = self.q_rank
        query = (rank or d_model) * self.n_heads * self.qk_dim + (d_model * rank if rank else 0)
        if n_kv_sets == 0:
            return {"query": query}
        up = self.kv_rank // self.n_latent_heads * self.expanded_elements
        return {"query": query, "key_value": d_model * (self.kv_rank + self.rope_dim), "key_value_up": up}

    def norms(self, n_kv_sets: int) -> int:
        return (self.kv_rank if self.latent_norm and n_kv_sets else 0) + (self.q_rank or 0)

    def activation_bytes(self, n_kv_sets: int) -> int:
        """Both latents are kept before their norm and after.

        Where queries stay in their product, the rotary key before rotation is kept too; it is left out.
        """
        queries = BF16 * self.n_heads * self.qk_dim + 2 * BF16 * (self.q_rank or 0)
        if n_kv_sets == 0:
            return queries
        latent = (2 if self.latent_norm else 1) * BF16 * self.kv_rank
        return queries + BF16 * (self.expanded_elements + self.rope_dim) + latent

    @property
    def width_formula(self) -> str:
        return "head_dim + rope_dim"

    @property
    def entry_formula(self) -> str:
        return "(kv_rank + rope_dim)"

    def weight_formulas(self, separate_kv: bool) -> dict[str, str]:
        queries = f"n_heads*{self.width_factor}"
        return {
            "query": f"d_model*q_rank + q_rank*{queries}" if self.q_rank else f"d_model*{queries}",
            "key_value": f"d_model*{self.entry_formula}",
            "key_value_up": "(kv_rank/n_latent_heads)*n_kv_heads*(head_dim + v_head_dim)",
        }

    def norm_formula(self, separate_kv: bool) -> str:
        return " + ".join(["kv_rank"] * self.latent_norm + ["q_rank"] * bool(self.q_rank))
