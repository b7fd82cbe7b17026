"""The module of `gated_linear`."""

import torch
import torch.nn.functional as F

from zoo.blocks.linear.base import LinearMixer, Taken
from zoo.blocks.linear.config import ResolvedLinear
from zoo.blocks.parts import RMSNorm
from zoo.kernels.layout import wide


class GatedLinear(LinearMixer):
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T; a_t = sigmoid(W_2 W_1 x + b)^(1/tau), y = W_O (norm(o) * silu(W_R x))."""

    def __init__(self, mixer: ResolvedLinear):
        super().__init__(mixer)
        config = self.config
        self.decay_bias = torch.nn.Parameter(torch.zeros(config.n_heads * config.key_dim))
        self.norm = RMSNorm(config.v_head_dim, config.norm_eps)
        self.draw_own()

    def taken(self, made: dict[str, torch.Tensor]) -> Taken:
        config = self.config
        q, k = (made[name].unflatten(-1, (-1, config.key_dim)) for name in ("query", "key"))
        v = made["value"].unflatten(-1, (-1, config.v_head_dim))
        logits = wide(self.map("decay", made["decay_latent"])) + self.decay_bias
        decay = F.logsigmoid(logits).unflatten(-1, (-1, config.key_dim)) / config.decay_temperature
        return Taken(q, k, v, decay, None, config.key_dim**-0.5)

    def read(self, o_BTHV: torch.Tensor, made: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.norm(o_BTHV).flatten(-2) * F.silu(made["gate"])
