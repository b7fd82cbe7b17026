"""The module of `mamba2`."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.blocks.linear.base import LinearMixer, Taken, draw_rates, draw_time_steps
from zoo.blocks.linear.config import ResolvedLinear
from zoo.blocks.parts import RMSNorm
from zoo.kernels.layout import wide


class Mamba2(LinearMixer):
    """S_t = a_t S_{t-1} + B_t (d_t x_t)^T, o_t = C_t^T S_t + E x_t, with one decay for each token and head.

    d_t = softplus(W_D u + c), a_t = exp(-exp(A) d_t); C, B and x are queries, keys and values.
    y = W_O norm(o * silu(W_Z u)), the norm over all heads of a group.
    """

    def __init__(self, mixer: ResolvedLinear):
        super().__init__(mixer)
        config = self.config
        groups = config.n_groups
        self.decay_log_rate = nn.Parameter(torch.zeros(config.n_heads))
        self.decay_bias = nn.Parameter(torch.zeros(config.n_heads))
        self.skip = nn.Parameter(torch.ones(config.n_heads))
        self.norm = RMSNorm(config.n_heads // groups * config.v_head_dim, config.norm_eps, groups)
        self.draw_own()

    def taken(self, made: dict[str, torch.Tensor]) -> Taken:
        config = self.config
        q, k = (made[name].unflatten(-1, (-1, config.key_dim)) for name in ("query", "key"))
        v = made["value"].unflatten(-1, (-1, config.v_head_dim))
        steps_BTH = F.softplus(wide(made["decay"]) + self.decay_bias)
        decay_BTH = -wide(self.decay_log_rate).exp() * steps_BTH
        return Taken(q, k, (v * steps_BTH[..., None]).to(v.dtype), decay_BTH, None, 1.0)

    def read(self, o_BTHV: torch.Tensor, made: dict[str, torch.Tensor]) -> torch.Tensor:
        v_BTHV = made["value"].unflatten(-1, (-1, self.config.v_head_dim))
        o_BTHV = o_BTHV + (v_BTHV * self.skip[:, None]).to(o_BTHV.dtype)
        gated = o_BTHV.flatten(-2) * F.silu(made["gate"])
        return self.norm(gated.unflatten(-1, self.norm.shape)).flatten(2)

    def draw_decays(self, generator: torch.Generator | None) -> None:
        draw_rates(self.decay_log_rate, generator)
        draw_time_steps(self.decay_bias, generator)
