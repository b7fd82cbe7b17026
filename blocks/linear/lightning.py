"""The module of `lightning`."""

import torch
import torch.nn.functional as F

from zoo.blocks.linear.base import LinearMixer, Taken
from zoo.blocks.linear.config import ResolvedLinear
from zoo.blocks.parts import WidthNorm
from zoo.kernels.layout import wide

SLOWEST = 1e-5  # added to the factor of depth, and to L - 1, in MiniMax-01's code


class Lightning(LinearMixer):
    """S_t = exp(-r) S_{t-1} + k_t v_t^T with a fixed rate r for each head; y = W_O (norm(o) * sigmoid(W_G x))."""

    def __init__(self, mixer: ResolvedLinear):
        super().__init__(mixer)
        self.norm = WidthNorm(self.config.n_heads * self.config.v_head_dim, self.config.norm_eps)
        self.at_depth(0, 1)

    def at_depth(self, index: int, n_layers: int) -> None:
        """Rates of layer `index` of n_layers; a block by itself decays as in the first layer."""
        factor = 1 - index / (n_layers - 1 + SLOWEST) + SLOWEST
        self.factor = factor if self.config.decay_by_depth else 1.0

    def taken(self, made: dict[str, torch.Tensor]) -> Taken:
        config = self.config
        active = {name: made[name] if config.conv_size else F.silu(made[name]) for name in ("query", "key", "value")}
        q, k = (active[name].unflatten(-1, (-1, config.key_dim)) for name in ("query", "key"))
        v = active["value"].unflatten(-1, (-1, config.v_head_dim))
        return Taken(q, k, v, self._decay(v), None, 1.0)

    def _decay(self, v_BTHV: torch.Tensor) -> torch.Tensor:
        """Log of the decay, [B, T, H]. Made on the device, because a copy from the host would end a CUDA graph."""
        heads = v_BTHV.shape[2]
        dtype = wide(v_BTHV[:0]).dtype
        rate_H = torch.exp2(torch.arange(1, heads + 1, device=v_BTHV.device, dtype=dtype) * (-8 / heads))
        return (rate_H * -self.factor).expand(*v_BTHV.shape[:3]).contiguous()

    def read(self, o_BTHV: torch.Tensor, made: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.norm(o_BTHV).flatten(-2) * F.sigmoid(made["gate"])
