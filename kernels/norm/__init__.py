"""Root-mean-square norm over the last axis, with one weight for all heads or one for each."""

import torch

from zoo.kernels import dispatch


def _why_not_triton(x, weight, *, eps) -> str | None:
    if x.shape[-1] > 4096:
        return f"it takes rows of up to 4,096 numbers, not {x.shape[-1]}"
    return dispatch.why_not_triton(x)


dispatch.register(
    "rms_norm",
    dispatch.Implementation("triton", "zoo.kernels.norm.op:rms_norm", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.norm.reference:rms_norm"),
)


def rms_norm(x_BTHD: torch.Tensor, weight: torch.Tensor, *, eps: float, impl: str = "auto") -> torch.Tensor:
    """x / sqrt(mean of x^2 + eps) * weight, the mean over the last axis (arXiv 1910.07467).

    x_BTHD: [B, T, heads, D] or [B, T, D], any float dtype.  weight: [D], for all heads, or [heads, D], any float dtype.
    Returns the shape and dtype of x, computed in float32 (float64 in a float64 model).
    Raises ValueError if shapes, dtypes or devices do not agree.
    """
    of_heads = [x_BTHD.shape[-1:], x_BTHD.shape[2:]]
    if x_BTHD.dim() not in (3, 4) or weight.shape not in of_heads or x_BTHD.device != weight.device:
        raise ValueError(
            f"rms_norm: x must be [B, T, (heads,) D] and weight [(heads,) D] on its device; found {list(x_BTHD.shape)} "
            f"on {x_BTHD.device}, {list(weight.shape)} on {weight.device}."
        )
    if 0 in x_BTHD.shape or not (x_BTHD.is_floating_point() and weight.is_floating_point()):
        found = f"{x_BTHD.dtype} {list(x_BTHD.shape)}, {weight.dtype}"
        raise ValueError(f"rms_norm: x and weight must be floating, and x not empty; found {found}.")
    return dispatch.call("rms_norm", impl, x_BTHD, weight, eps=float(eps))
