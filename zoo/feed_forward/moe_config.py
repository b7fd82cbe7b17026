"""The feed-forward `moe`, a mixture of experts. No torch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import Count as Few
from zoo.blocks.checked import FieldProblem, Flag, Positive
from zoo.blocks.cost import BF16, FLOAT
from zoo.feed_forward.base import Count, FeedForwardConfig

INT64 = 8  # bytes
SWISH = 1.702  # of the experts of gpt-oss: x sigmoid(1.702 x) is close to GELU
Rate = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class MoE(FeedForwardConfig):
    """A mixture of experts: a router chooses `n_active` of `n_experts` SwiGLU networks for each token.

    Every token also uses the shared experts. A loss (`balance_loss`), a bias on the router's scores that moves after
    each batch (`balance_rate`), or both balance the experts. No token is dropped.
    """

    module: ClassVar[str] = "zoo.feed_forward.moe:MoEModule"
    about: ClassVar[About] = About(
        r"""
With router scores $s = \operatorname{softmax}(W_R\, x)$, or $\sigma(W_R\, x)$, the $k$ experts of a token are those
of the largest $s_i + b_i$. Their weights are

$$ g_i = \lambda\, \frac{s_i}{\sum_{j\ \text{chosen}} s_j} $$

with the sum only if `normalise` says so, and $\lambda$ = `route_scale`. Each expert is a SwiGLU network:

$$ y = \sum_{i\ \text{chosen}} g_i\, E_i(x) + \sum_{j} E^{shared}_j(x) $$

With `clamp` c they are those of gpt-oss: with $g = \min(W_g\, x,\, c)$ and $u = W_u\, x$ cut to $[-c, c]$,

$$ E(x) = W_d\, \left( (u + 1)\; g\; \sigma(1.702\, g) \right) $$

`expert_bias` gives the three maps of each expert a bias, `router_bias` the router's.
The bias $b$ has no gradient. After each batch it moves by `balance_rate`: up for experts with fewer tokens than the
mean, down for those with more. With a rate of 0 there is no bias. The layer adds to the training loss

$$ L = \alpha\, n \sum_i f_i\, p_i + \zeta\, \overline{(\log \textstyle\sum_i e^{(W_R x)_i})^2} $$

with $n$ experts, the share $f_i$ of the choices that fall on expert $i$, the mean $p_i$ of its score (divided by the
sum of a token's scores), $\alpha$ = `balance_loss` and $\zeta$ = `z_loss`.
""",
        (
            Paper("Outrageously Large Neural Networks (Shazeer 2017)", "1701.06538"),
            Paper("Switch Transformers (Fedus 2021)", "2101.03961"),
            Paper("ST-MoE: Designing Stable and Transferable Sparse Expert Models (Zoph 2022)", "2202.08906"),
            Paper("Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts (Wang 2024)", "2408.15664"),
            Paper("gpt-oss-120b & gpt-oss-20b Model Card (OpenAI 2025)", "2508.10925"),
            Paper("DeepSeek-V3 Technical Report (DeepSeek-AI 2024)", "2412.19437"),
        ),
        example={"n_experts": 8, "n_active": 2, "d_ff": 352, "n_shared": 1},
    )

    kind: Literal["moe"] = Field("moe", description="A mixture of experts.")
    n_experts: Annotated[Few, Field(ge=2)] = Field(8, description="Experts that the router chooses among.")
    n_active: Few = Field(2, description="Experts that each token uses.")
    d_ff: Count = Field(description="Width of one expert's hidden layer.")
    n_shared: Annotated[int, Field(strict=True, ge=0, le=4096)] = Field(
        0, description="Shared experts, which every token uses."
    )
    shared_d_ff: Count | None = Field(None, description="Width of one shared expert. Default: d_ff.")
    shared_gate: Flag = Field(
        False, description="Whether what shared experts add is multiplied by a sigmoid gate (Qwen2-MoE)."
    )
    expert_bias: Flag = Field(False, description="Biases on the three maps of each expert (gpt-oss).")
    clamp: Positive | None = Field(
        None,
        le=1e6,
        description="Experts of gpt-oss: hidden values are cut to this bound, (up + 1) gate sigmoid(1.702 gate) is "
        "their product. Default: SwiGLU.",
    )
    router_bias: Flag = Field(False, description="A learned bias on the router's logits (gpt-oss).")
    router: Literal["softmax", "sigmoid"] = Field("softmax", description="How router logits become scores.")
    normalise: Flag = Field(True, description="Whether the weights of a token's experts are divided by their sum.")
    route_scale: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = Field(
        1.0, description="What the weights are multiplied by (DeepSeek-V3: 2.5)."
    )
    weigh: Literal["output", "input"] = Field(
        "output", description="Whether a weight multiplies what its expert gives, or what it reads (Llama 4)."
    )
    n_groups: Few = Field(1, description="Groups of experts; each token uses a few of them (DeepSeek-V3).")
    groups_active: Few | None = Field(
        None,
        description="Groups of each token: those whose two best experts have the largest sum. Default: n_groups.",
    )
    balance_loss: Rate = Field(0.01, description="Weight of the loss that balances experts; 0: none.")
    z_loss: Rate = Field(0.0, description="Weight of the loss that keeps router logits small (OLMoE: 0.001).")
    balance_rate: Rate = Field(
        0.0, description="Step of each expert's bias after a batch (DeepSeek-V3: 0.001); 0: there is no bias."
    )

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model) + self._choice_problems()
        if self.normalise and self.n_active == 1:
            why = "needs n_active of 2 or more: one expert's weight would always be 1, and the router learn nothing"
            found.append((("normalise",), f"{why}; found true with 1"))
        for name in ("shared_d_ff", "shared_gate"):
            value = getattr(self, name)
            if value and not self.n_shared:
                found.append(((name,), f"needs n_shared of 1 or more; found {str(value).lower()} without"))
        for name in ("expert_bias", "clamp"):
            value = getattr(self, name)
            if value and self.n_shared:
                why = "needs n_shared: 0, because shared experts are SwiGLU without biases"
                found.append(((name,), f"{why}; found {str(value).lower()}"))
        return found

    def _choice_problems(self) -> list[FieldProblem]:
        """What is wrong with the numbers of experts and groups; the first of it."""
        if self.n_active > self.n_experts:
            return [(("n_active",), f"must be at most n_experts ({self.n_experts}); found {self.n_active}")]
        if self.n_experts % self.n_groups:
            return [(("n_groups",), f"must divide n_experts ({self.n_experts}); found {self.n_groups}")]
        if self.of_groups > self.n_groups:
            return [(("groups_active",), f"must be at most n_groups ({self.n_groups}); found {self.of_groups}")]
        room = self.of_groups * (self.n_experts // self.n_groups)
        if self.n_active > room:
            why = f"leaves {room} experts, fewer than n_active ({self.n_active}); found {self.of_groups}"
            return [(("groups_active",), why)]
        return []

    def resolve(self, d_model: int, seq_len: int) -> Self:
        shared = {"shared_d_ff": self.shared_d_ff or self.d_ff} if self.n_shared else {}
        return self.model_copy(update={"groups_active": self.of_groups, **shared})

    @property
    def of_groups(self) -> int:
        """Groups whose experts a token may use."""
        return self.groups_active or self.n_groups

    @property
    def shared_width(self) -> int:
        """Width of all shared experts together, which are one network."""
        return self.n_shared * (self.shared_d_ff or self.d_ff)

    def describe(self) -> str:
        shared = f", {self.n_shared} shared" if self.n_shared else ""
        return f"moe {self.n_active} of {self.n_experts} x {self.d_ff:,}{shared}"

    def parameters(self, d_model: int) -> int:
        return self._for_every_token(d_model) + self.n_experts * self._of_expert(d_model)

    def active_parameters(self, d_model: int) -> int:
        return self._for_every_token(d_model) + self.n_active * self._of_expert(d_model)

    def flops(self, d_model: int) -> float:
        """Biases are added, and multiply nothing."""
        biases = self.n_active * (2 * self.d_ff + d_model) if self.expert_bias else 0
        return 2.0 * (self.active_parameters(d_model) - biases - (self.n_experts if self.router_bias else 0))

    def _for_every_token(self, d_model: int) -> int:
        """The router, the shared experts and their gate."""
        maps = d_model * (self.n_experts + 3 * self.shared_width + self.shared_gate)
        return maps + (self.n_experts if self.router_bias else 0)

    def _of_expert(self, d_model: int) -> int:
        """The three maps of one expert and their biases."""
        return 3 * d_model * self.d_ff + (2 * self.d_ff + d_model if self.expert_bias else 0)

    def activation_bytes(self, d_model: int) -> int:
        """What routing, each choice and the shared experts keep.

        Router: its float32 input, scores and chosen weights. Choice: the expert's input, its four hidden values (seven
        with `clamp`), its output, and where the row came from. Shared experts: their input, and both products before
        the gate.
        """
        router = FLOAT * (d_model + self.n_experts + self.n_active + 2) + BF16 * self.n_active
        router += FLOAT * (self.n_experts + 1) if self.z_loss else 0
        choice = BF16 * (2 * d_model + (7 if self.clamp else 4) * self.d_ff) + 3 * INT64
        shared = BF16 * (d_model + 2 * self.shared_width) if self.n_shared else 0
        gate = BF16 * (d_model + 1) if self.shared_gate else 0
        return router + self.n_active * choice + shared + gate
