"""Addition and norm in plain torch."""

import torch
import torch.nn.functional as F


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`zoo.kernels.add_rms_norm`: x + delta, and its norm in `dtype`, both [..., C]."""
    total = x if delta is None else x + delta
    wide = total if total.dtype == torch.float64 else total.float()
    normed = F.rms_norm(wide, wide.shape[-1:], eps=eps) * weight.to(wide.dtype)
    return total, normed.to(dtype)
