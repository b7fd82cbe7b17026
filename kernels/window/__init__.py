"""Attention over the last w tokens."""

import torch

from zoo.kernels import checks, dispatch, shared_intervals
from zoo.kernels.documents import Documents

dispatch.register(
    "window_attention",
    dispatch.Implementation("triton", "zoo.kernels.window.op:window_attention", shared_intervals.why_not),
    dispatch.Implementation("reference", "zoo.kernels.window.reference:window_attention"),
)


def window_attention(
    q_BTHD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTKV: torch.Tensor,
    *,
    window: int,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Sliding-window attention: query t sees keys max(0, t-w+1)..t of its document (arXiv 2004.05150).

    window: w, in tokens, the query's own included; it may be wider than T. Scores, sinks
    and rotary parts as `full_attention`.
    Returns o_BTHV in the input dtype; scores and sums are float32 (float64 for float64 input).
    Raises ValueError if shapes, dtypes or devices do not agree, window < 1, or `impl` cannot serve the call.
    """
    tensors = {"q_BTHD": q_BTHD, "k_BTKD": k_BTKD, "v_BTKV": v_BTKV, "q_rope_BTHR": q_rope, "k_rope_BTR": k_rope}
    scale = checks.attention("window_attention", tensors, documents, scale)["scale"]
    checks.at_least("window_attention", 1, window=window)
    options = {
        "window": min(window, q_BTHD.shape[1]),
        "q_rope": q_rope,
        "k_rope": k_rope,
        "scale": scale,
        "documents": documents,
        **checks.score_options("window_attention", q_BTHD, sinks, softcap),
    }
    return dispatch.call("window_attention", impl, q_BTHD, k_BTKD, v_BTKV, **options)
