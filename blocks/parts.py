"""What passes between a projection and the patterns: queries, keys and values, and the modules that both use.

Legend of the shape suffixes: blocks/base.py.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.drawing import DrawnLater
from zoo.blocks.fields import PositionTemperature
from zoo.blocks.interface import Projection
from zoo.kernels import rms_norm

__all__ = ["Attended", "Context", "Entries", "Keys", "Queries", "RMSNorm", "Source", "WidthNorm", "linear", "sinks"]


class Queries(NamedTuple):
    """q_BTHD, and q_rope_BTHR if keys have a separate rotary part; `scale` multiplies the scores.

    For the zoo's own patterns only the last axis of q and rope is guaranteed to be contiguous: they may be views of the
    product that made them. Patterns of other packages are given contiguous ones.
    sinks: [H], or None; softcap: of scores, or None (`fields.ScoreFields`).
    each: q and rope for each pattern, all in the same memory, the first pair q and rope themselves. The operation that
    cuts the product then adds up their gradients. If it is empty, or q or rope were replaced since, all patterns read
    q and rope.
    """

    q: torch.Tensor
    rope: torch.Tensor | None
    scale: float
    sinks: torch.Tensor | None = None
    softcap: float | None = None
    each: tuple[tuple[torch.Tensor, torch.Tensor | None], ...] = ()

    def of_pattern(self, i: int) -> "Queries":
        """What the i-th pattern reads: its pair of `each`, unless q or rope have been replaced since."""
        if not self.each or self.each[0][0] is not self.q or self.each[0][1] is not self.rope:
            return self
        q, rope = self.each[i]
        return self._replace(q=q, rope=rope)

    def contiguous(self) -> "Queries":
        return self._replace(q=self.q.contiguous(), rope=None if self.rope is None else self.rope.contiguous())

    @property
    def scores(self) -> dict[str, Any]:
        """What attention functions take about scores. Patterns that cannot have sinks and caps read `scale` alone."""
        return {"scale": self.scale, "sinks": self.sinks, "softcap": self.softcap}

    def tempered(self, temperature: PositionTemperature | None, context: Context | Step) -> "Queries":
        """The queries times a factor that grows with their position; themselves without a temperature."""
        if temperature is None:
            return self
        factor = context.query_factor(temperature, self.q.dtype)
        rope = None if self.rope is None else (self.rope * factor).to(self.rope.dtype)
        return self._replace(q=(self.q * factor).to(self.q.dtype), rope=rope, each=())

    def to(self, dtype: torch.dtype) -> "Queries":
        return self._replace(q=self.q.to(dtype), rope=None if self.rope is None else self.rope.to(dtype), each=())


def query_readers(projection: Any) -> int:
    """How many times a projection returns its queries: once for each pattern where gradients are recorded and the
    queries have no temperature, otherwise once.

    projection: `interface.GivesEachPattern`.
    """
    gives = torch.is_grad_enabled() and projection.config.position_temperature is None
    return projection.n_patterns if gives else 1


class Keys(NamedTuple):
    """k_BTKD and v_BTKV, and k_rope_BTR, shared by all heads, if rotary parts are separate; N for T where pooled."""

    k: torch.Tensor
    v: torch.Tensor
    rope: torch.Tensor | None


Entries = dict[str, torch.Tensor]  # what tokens (or blocks) leave behind: key and value, or latent and rope_key


class Attended(NamedTuple):
    """The result of a pattern that no other pattern reads: o_BTHV."""

    output: torch.Tensor


class Source:
    """One set of keys and values of a batch, in the forms that patterns ask for; each is made when asked for.

    raw: before rotation.  cached: what a cache keeps, keys rotated.  keys: what attention reads.
    """

    def __init__(self, projection: Projection, raw: Entries, context: Context | Step):
        self.projection, self.raw, self.context = projection, raw, context
        # Not functools.cached_property: that of Python 3.11 takes a lock, where torch.compile would end its graph.
        self._cached: Entries | None = None
        self._keys: Keys | None = None

    @property
    def cached(self) -> Entries:
        if self._cached is None:
            self._cached = self.projection.rotate(self.raw, self.context)
        return self._cached

    @property
    def keys(self) -> Keys:
        if self._keys is None:
            self._keys = self.projection.expand(self.cached)
        return self._keys


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32 (arXiv 1910.07467), for latents and for QK-norm.

    With n_heads, x [..., n_heads, width] is scaled per head and channel; the weight is kept flat, [n_heads * width].
    keeps_views: keep x as it is for the backward pass; otherwise a copy if x is a view of something larger.
    learned: whether there are scales; without, `weight` is None. A buffer of ones would not be in a state_dict, and a
    model that is made on the meta device and then loaded would never get it.
    """

    def __init__(self, width: int, eps: float, n_heads: int = 1, learned: bool = True, keeps_views: bool = False):
        super().__init__()
        self.keeps_views = keeps_views
        self.weight = nn.Parameter(torch.ones(n_heads * width)) if learned else None
        self.shape = (n_heads, width) if n_heads > 1 else (width,)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not self.keeps_views:
            x = x.contiguous()  # kept for the backward pass, where a view would hold the whole product it is a piece of
        weight = x.new_ones(self.shape) if self.weight is None else self.weight.view(self.shape)
        return rms_norm(x, weight, eps=self.eps)


class WidthNorm(RMSNorm):
    """The norm of all heads together: x [..., n_heads, D], the mean over n_heads * D (OLMo 2, arXiv 2501.00656)."""

    def __init__(self, width: int, eps: float, learned: bool = True):
        super().__init__(width, eps, learned=learned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(-2)).view(x.shape)


def sinks(n_heads: int, wanted: bool) -> nn.Parameter | None:
    """The logits of attention sinks. At 0 a sink weighs as much as a key whose product with the query is 0."""
    return nn.Parameter(torch.zeros(n_heads)) if wanted else None


class Linear(DrawnLater, nn.Linear):
    """The linear map of the zoo's own parts."""


def may_overwrite(module: nn.Module) -> bool:
    """Whether nobody but the caller sees the result of a linear map: it is the zoo's own and has no forward hooks."""
    hooks = module._forward_hooks or torch.nn.modules.module._global_forward_hooks
    return type(module) is Linear and "forward" not in vars(module) and not hooks


def linear(inputs: int, outputs: int, bias: bool = False) -> Linear:
    """A linear map; the maps of a block have no bias unless its config asks for one."""
    return Linear(inputs, outputs, bias=bias)
