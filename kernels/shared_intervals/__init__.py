"""Attention over one interval of keys a query: the Triton kernels behind full, window and compression attention."""

import torch

from zoo.kernels import dispatch


def why_not(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, q_rope: torch.Tensor | None = None, **options
) -> str | None:
    """A reason why the kernels cannot serve the call, or None; imports no Triton."""
    widest = max(x.shape[-1] for x in (q, v, q_rope) if x is not None)
    if widest > 256:
        return f"its heads are up to 256 wide, not {widest}"
    if not scale > 0:
        return f"its scale is positive, not {scale}: it takes maxima before the scale"
    return dispatch.why_not_triton(q)
