"""What passes between a projection and the patterns: the context of a forward pass, queries, keys and values.

The legend of the shape suffixes stands in blocks/base.py.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from zoo.blocks.fields import RopeFields
from zoo.blocks.rope import RopeTable, rope_table
from zoo.kernels import Documents, mean_pool, rms_norm


@dataclass(eq=False)
class Context:
    """Where the tokens of a batch stand, made once a forward pass and shared by all layers.

    positions_BT: index of each token in its document, [B or 1, T].  documents: None where each row is one document.
    Rotary tables are made at first use and kept for the layers that follow.
    """

    positions_BT: torch.Tensor
    documents: Documents | None = None
    _tables: dict = field(default_factory=dict, repr=False)

    @classmethod
    def for_tokens(
        cls, batch: int, seq_len: int, device: torch.device | str = "cpu", documents: Documents | None = None
    ) -> "Context":
        """The context of rows of seq_len tokens, each one document unless `documents` says otherwise."""
        if documents is None:
            return cls(torch.arange(seq_len, device=device)[None])
        if tuple(documents.start_BT.shape) != (batch, seq_len):
            found = list(documents.start_BT.shape)
            raise ValueError(f"Context: documents must be for shape [{batch}, {seq_len}]; found {found}")
        return cls(documents.position_BT, documents)

    def rope(self, dim: int, rope: RopeFields, dtype: torch.dtype, blocks: tuple[int, int] | None = None) -> RopeTable:
        """The rotary table of every token, or of every slot of the compression grid `blocks` = (block, stride).

        A block stands at the mean position of its tokens, where the mean of equal keys, rotated, points as well.
        """
        dtype = dtype if dtype == torch.float64 else torch.float32
        key = (dim, rope.rope_theta, rope.rope_scaling, dtype, blocks)
        if key not in self._tables:
            with torch.no_grad(), torch.autocast(self.positions_BT.device.type, enabled=False):
                positions_BT = self.positions_BT.to(dtype)
                if blocks:
                    grid = {"block": blocks[0], "stride": blocks[1], "documents": self.documents}
                    positions_BT = mean_pool(positions_BT[..., None], **grid)[..., 0]
                self._tables[key] = rope_table(positions_BT, dim, rope.rope_theta, rope.rope_scaling, dtype)
        return self._tables[key]


class Queries(NamedTuple):
    """q_BTHD, with q_rope_BTHR beside it where keys come in two parts; `scale` multiplies the scores."""

    q: torch.Tensor
    rope: torch.Tensor | None
    scale: float

    def to(self, dtype: torch.dtype) -> "Queries":
        return Queries(self.q.to(dtype), None if self.rope is None else self.rope.to(dtype), self.scale)


class Keys(NamedTuple):
    """k_BTKD and v_BTKV, with k_rope_BTR, shared by all heads, where keys come in two parts; N for T where pooled."""

    k: torch.Tensor
    v: torch.Tensor
    rope: torch.Tensor | None


Entries = dict[str, torch.Tensor]  # what tokens (or blocks) leave behind: key and value, or latent and rope_key


class Source:
    """One set of keys and values of a batch, in the forms that patterns ask for; each is made when asked for.

    raw: before rotation.  cached: what a cache keeps, keys rotated.  keys: what attention reads.
    """

    def __init__(self, projection: nn.Module, raw: Entries, context: Context):
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
    """

    def __init__(self, width: int, eps: float, n_heads: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_heads * width))
        self.shape = (n_heads, width) if n_heads > 1 else (width,)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            x = x.contiguous()  # kept for the backward pass, where a view would hold the whole product it is a piece of
        return rms_norm(x, self.weight.view(self.shape), eps=self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, as every one in a block."""
    return nn.Linear(inputs, outputs, bias=False)
