"""The memory layouts that kernels need, and masks over tensors."""

from typing import overload

import torch


@overload
def dense_rows(x: torch.Tensor) -> torch.Tensor: ...
@overload
def dense_rows(x: None) -> None: ...
@overload
def dense_rows(x: torch.Tensor | None) -> torch.Tensor | None: ...
def dense_rows(x: torch.Tensor | None) -> torch.Tensor | None:
    """x, or a copy if its last axis is not contiguous, which is all that most kernels require. None stays None."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def is_flat(x: torch.Tensor) -> bool:
    """Whether the channels of a token of x [B, T, C] or [B, T, heads, width] lie side by side."""
    return x.stride(-1) == 1 and (x.dim() == 3 or x.shape[2] == 1 or x.stride(2) == x.shape[3])


def strides(x: torch.Tensor | None, n: int) -> tuple[int, ...]:
    """The strides of the first n axes, zeros where there is no tensor."""
    return (0,) * n if x is None else x.stride()[:n]


def over(mask_BT: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """mask_BT with as many axes as x [B, T, ...], those after T of size 1."""
    return mask_BT.view(*mask_BT.shape, *[1] * (x.dim() - 2))


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or as it is in float64: the dtype of sums and of states."""
    return x if x.dtype == torch.float64 else x.float()
