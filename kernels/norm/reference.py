"""The norm in plain torch."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """`zoo.kernels.rms_norm`: x [..., D] -> the same shape."""
    if weight.dim() == 1 and x.dtype == weight.dtype:  # one kernel, which sums in float32 as well
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    wide = x if x.dtype == torch.float64 else x.float()
    normed = torch.nn.functional.rms_norm(wide, weight.shape[-1:], eps=eps)
    return (normed * weight).to(x.dtype)
