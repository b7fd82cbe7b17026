"""The addition to the residual stream and the norm that follows it, as one operation."""

import torch

from zoo.kernels import dispatch

MAX_WIDTH = 16_384  # a row lies in the registers of one program


def _why_not_triton(x, delta, weight, *, eps, dtype) -> str | None:
    if x.shape[-1] > MAX_WIDTH:
        return f"it takes rows of up to {MAX_WIDTH:,} numbers, not {x.shape[-1]}"
    if delta is not None and (reason := dispatch.why_not_triton(delta)):
        return reason
    return dispatch.why_not_triton(x)


dispatch.register(
    "add_rms_norm",
    dispatch.Implementation("triton", "zoo.kernels.residual.op:add_rms_norm", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.residual.reference:add_rms_norm"),
)


def add_rms_norm(
    x_BTC: torch.Tensor,
    delta_BTC: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + delta, and the root-mean-square norm of s over its last axis, scaled by the weight (arXiv 1910.07467).

    x_BTC: the residual stream.  delta_BTC: what a layer adds to it, any float dtype; None: s is x.  weight: [C].
    Returns s_BTC in the dtype that torch gives x + delta, and the norm in `dtype` (default: that of s). Statistics are
    float32 (float64 in a float64 model), and each result is rounded once.
    The kernel keeps s for the backward pass in `dtype`: with a float32 stream and a bfloat16 norm, half the bytes.
    Raises ValueError if shapes or devices do not agree.
    """
    tensors = [x_BTC, weight] if delta_BTC is None else [x_BTC, weight, delta_BTC]
    if weight.shape != x_BTC.shape[-1:] or x_BTC.dim() < 2 or any(t.shape != x_BTC.shape for t in tensors[2:]):
        found = ", ".join(str(list(t.shape)) for t in tensors)
        raise ValueError(f"add_rms_norm: must be x [..., C], weight [C], delta [..., C]; found {found}.")
    if len({t.device for t in tensors}) > 1:
        found = ", ".join(str(t.device) for t in tensors)
        raise ValueError(f"add_rms_norm: x, weight and delta must be on one device; found {found}.")
    if dtype is None:
        dtype = x_BTC.dtype if delta_BTC is None else torch.promote_types(x_BTC.dtype, delta_BTC.dtype)
    return dispatch.call("add_rms_norm", impl, x_BTC, delta_BTC, weight, eps=float(eps), dtype=dtype)
