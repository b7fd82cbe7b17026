"""What a linear mixer keeps of the tokens it has read: its state, and the last inputs of its convolution.

Legend of the shape suffixes: blocks/base.py; N the tokens before the next one that a convolution reads.
"""

from typing import Self

import torch

from zoo.blocks.context import Step
from zoo.blocks.linear.config import ResolvedLinear
from zoo.kernels.layout import over


class StateCache:
    """The cache of one layer (`blocks.interface.LayerCache`), as large for one token as for a million.

    state_BHDV: float32, or float64 in a cache of float64: errors of rounding would add up in it.  tail_BNC: inputs of
    the convolution, in the dtype of the cache.
    """

    def __init__(self, state_BHDV: torch.Tensor, tail_BNC: torch.Tensor):
        self.state_BHDV, self.tail_BNC = state_BHDV, tail_BNC

    @classmethod
    def empty(cls, mixer: ResolvedLinear, batch: int, device=None, dtype=None) -> Self:
        """Memory for `batch` rows."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        of_state = dtype if dtype == torch.float64 else torch.float32
        state = torch.zeros(batch, *mixer.state, device=device, dtype=of_state)
        return cls(state, torch.zeros(batch, *mixer.tail, device=device, dtype=dtype))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that the cache holds."""
        return [self.state_BHDV, self.tail_BNC]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return sum(x.numel() * x.element_size() for x in self.tensors)

    def rows(self, lo: int, hi: int) -> "StateCache":
        """Rows lo .. hi - 1, in the same memory."""
        return StateCache(self.state_BHDV[lo:hi], self.tail_BNC[lo:hi])

    def reorder(self, source_B: torch.Tensor) -> None:
        """Row b becomes a copy of what row source_B[b] held."""
        for kept in self.tensors:
            kept.copy_(kept.index_select(0, source_B.to(kept.device)))

    def before(self, step: Step) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """State and tail before the tokens of a step, zeros for rows that held no token; None if none did."""
        if step.fresh:
            return None, None
        holds_B = step.start_B > 0
        count = self.tail_BNC.shape[1]
        held_BN = step.start_B[:, None] >= torch.arange(count, 0, -1, device=holds_B.device)
        state = torch.where(over(holds_B[:, None], self.state_BHDV), self.state_BHDV, 0.0)
        return state, torch.where(held_BN[..., None], self.tail_BNC, 0.0)

    @torch.no_grad()
    def keep_tail(self, mixed_BTC: torch.Tensor, step: Step) -> None:
        """Keep the last inputs of the convolution; mixed_BTC: those of the new tokens."""
        count, seq_len = self.tail_BNC.shape[1], mixed_BTC.shape[1]
        if count == 0:
            return
        both = torch.cat((self.tail_BNC, mixed_BTC.to(self.tail_BNC.dtype)), 1)
        if step.n_new_B is None:
            self.tail_BNC.copy_(both[:, seq_len:])
            return
        index_BN = step.n_new_B[:, None] + torch.arange(count, device=both.device)
        self.tail_BNC.copy_(both[torch.arange(len(both), device=both.device)[:, None], index_BN])

    @torch.no_grad()
    def keep_state(self, state_BHDV: torch.Tensor) -> None:
        """Keep the state after the new tokens."""
        self.state_BHDV.copy_(state_BHDV)
