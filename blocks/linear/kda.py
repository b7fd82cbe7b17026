"""The module of `kda`."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.blocks.linear.base import LinearMixer, Taken, draw_rates, draw_time_steps, unit_length
from zoo.blocks.linear.config import ResolvedLinear
from zoo.blocks.parts import RMSNorm
from zoo.kernels.layout import wide


class KimiDelta(LinearMixer):
    """S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T: every channel of a key decays at a rate of its own.

    a_t = exp(-exp(A) softplus(W_2 W_1 x + c)), b_t = sigmoid(W_B x); queries and keys have unit length.
    y = W_O (norm(o) * sigmoid(W_4 W_3 x)).
    """

    def __init__(self, mixer: ResolvedLinear):
        super().__init__(mixer)
        config = self.config
        self.decay_log_rate = nn.Parameter(torch.zeros(config.n_heads))
        self.decay_bias = nn.Parameter(torch.zeros(config.n_heads * config.key_dim))
        self.norm = RMSNorm(config.v_head_dim, config.norm_eps)
        self.draw_own()

    def taken(self, made: dict[str, torch.Tensor]) -> Taken:
        config = self.config
        q, k = (unit_length(made[name].unflatten(-1, (-1, config.key_dim))) for name in ("query", "key"))
        v = made["value"].unflatten(-1, (-1, config.v_head_dim))
        steps = F.softplus(wide(self.map("decay", made["decay_latent"])) + self.decay_bias)
        decay = -wide(self.decay_log_rate).exp()[:, None] * steps.unflatten(-1, (-1, config.key_dim))
        return Taken(q, k, v, decay, wide(made["beta"]).sigmoid(), config.key_dim**-0.5)

    def read(self, o_BTHV: torch.Tensor, made: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.norm(o_BTHV).flatten(-2) * self.map("gate", made["gate_latent"]).sigmoid()

    def draw_decays(self, generator: torch.Generator | None) -> None:
        draw_rates(self.decay_log_rate, generator)
        draw_time_steps(self.decay_bias, generator)
