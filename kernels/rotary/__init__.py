"""Rotary position embedding: the rotation of channel pairs."""

import torch

from zoo.kernels import dispatch


def _why_not_triton(x, cos, sin) -> str | None:
    if cos.dtype != torch.float32:
        return f"its tables are float32, not {cos.dtype}"
    return dispatch.why_not_triton(x)


dispatch.register(
    "rotate",
    dispatch.Implementation("triton", "zoo.kernels.rotary.op:rotate", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.rotary.reference:rotate"),
)


def rotate(x_BTHD: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """Turn channel i of each head with channel i + D/2 (half split) by the angle of its token (arXiv 2104.09864).

    x_BTHD: [B, T, heads, D] or [B, T, D], any float dtype.  cos_BTR, sin_BTR: [B or 1, T, D / 2], float32 (float64 in a
    float64 model).  Returns the shape and dtype of x, computed in the dtype of the table; the gradient turns back.
    Raises ValueError if shapes, dtypes or devices do not agree.
    """
    expected = [*x_BTHD.shape[:2], x_BTHD.shape[-1] / 2] if x_BTHD.dim() in (3, 4) and 0 not in x_BTHD.shape else []
    found = list(cos_BTR.shape)
    if not expected or found[1:] != expected[1:] or found[0] not in (1, expected[0]):
        raise ValueError(
            f"rotate: x must be [B, T, (heads,) D] and cos [B or 1, T, D/2]; found {list(x_BTHD.shape)}, {found}."
        )
    if (
        sin_BTR.shape != cos_BTR.shape
        or sin_BTR.dtype != cos_BTR.dtype
        or not sin_BTR.device == cos_BTR.device == x_BTHD.device
    ):
        sine, cosine = (f"{x.dtype} {list(x.shape)} on {x.device}" for x in (sin_BTR, cos_BTR))
        raise ValueError(f"rotate: sin and cos must be alike and on {x_BTHD.device}; found {sine}, {cosine}.")
    if not x_BTHD.is_floating_point() or cos_BTR.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rotate: x must be floating, cos and sin float32 or float64; found {x_BTHD.dtype}, {cos_BTR.dtype}."
        )
    return dispatch.call("rotate", impl, x_BTHD, cos_BTR, sin_BTR)
