"""The SwiGLU feed-forward, whose hidden values are computed again in the backward pass instead of kept."""

import torch

from zoo.kernels import dispatch


def _why_not_triton(x, w_gate, w_up, w_down) -> str | None:
    if not x.dtype == w_gate.dtype == w_up.dtype == w_down.dtype:
        return f"input and weights must have one dtype, not {x.dtype} and {w_gate.dtype}"
    return dispatch.why_not_triton(x)


dispatch.register(
    "swiglu_mlp",
    dispatch.Implementation("triton", "zoo.kernels.swiglu.op:swiglu_mlp", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.swiglu.reference:swiglu_mlp"),
)


def swiglu_mlp(
    x_BTC: torch.Tensor, w_gate_FC: torch.Tensor, w_up_FC: torch.Tensor, w_down_CF: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """W_down (silu(W_gate x) * W_up x) (Shazeer, arXiv 2002.05202).  x_BTC: [..., C]; returns the shape and dtype of x.

    F is the feed-forward's width. The kernel keeps W_gate x and W_up x for the backward pass and makes their gated
    product again. The backward pass writes gradients over what was kept, so it runs once for each forward pass.
    Raises ValueError if shapes or devices do not agree.
    """
    wanted = (w_gate_FC.shape == w_up_FC.shape == w_down_CF.T.shape) and w_gate_FC.shape[1:] == x_BTC.shape[-1:]
    if not wanted or x_BTC.dim() < 2:
        found = ", ".join(str(list(t.shape)) for t in (x_BTC, w_gate_FC, w_up_FC, w_down_CF))
        raise ValueError(f"swiglu_mlp: must be x [..., C], w_gate and w_up [F, C], w_down [C, F]; found {found}.")
    if not x_BTC.device == w_gate_FC.device == w_up_FC.device == w_down_CF.device:
        raise ValueError(f"swiglu_mlp: x and weights must be on one device; found {x_BTC.device}, {w_gate_FC.device}.")
    return dispatch.call("swiglu_mlp", impl, x_BTC, w_gate_FC, w_up_FC, w_down_CF)
