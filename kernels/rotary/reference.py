"""The rotation in plain torch."""

import torch


def rotate(x: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.rotate`: x [B, T, ..., 2 R] -> the same shape."""
    shape = (*cos_BTR.shape[:2], *[1] * (x.dim() - 3), cos_BTR.shape[-1])
    cos, sin = cos_BTR.view(shape), sin_BTR.view(shape)
    left, right = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)
