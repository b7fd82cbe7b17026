"""Attention over every earlier token."""

import torch

from zoo.kernels import checks, dispatch, shared_intervals
from zoo.kernels.documents import Documents


def _why_not_sdpa(*tensors, documents, sinks, softcap, **options) -> str | None:
    lacks = {"packed documents": documents, "attention sinks": sinks, "cap of scores": softcap}
    lacking = [name for name, given in lacks.items() if given is not None]
    return f"it knows no {' and no '.join(lacking)}" if lacking else None


dispatch.register(
    "full_attention",
    dispatch.Implementation("sdpa", "zoo.kernels.full.sdpa:full_attention", _why_not_sdpa),
    dispatch.Implementation("triton", "zoo.kernels.full.op:full_attention", shared_intervals.why_not),
    dispatch.Implementation("reference", "zoo.kernels.full.reference:full_attention"),
)


def full_attention(
    q_BTHD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTKV: torch.Tensor,
    *,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Causal softmax attention: query t sees keys 0..t of its document (Vaswani 2017; grouped heads, arXiv 2305.13245).

    Score = scale * (q . k + q_rope . k_rope), q_rope_BTHR and k_rope_BTR optional, k_rope shared by all heads;
    scale defaults to 1/sqrt(D + R). Query head h reads key/value head h // (H / K).
    softcap: c; scores x become c tanh(x / c) (Gemma 2, arXiv 2408.00118).
    sinks: [H], a logit of each query head that is added to the softmax's denominator (gpt-oss, arXiv 2508.10925).
    Returns o_BTHV in the input dtype; scores and sums are float32 (float64 for float64 input).
    Raises ValueError if shapes, dtypes or devices do not agree, or `impl` cannot serve the call.
    """
    tensors = {"q_BTHD": q_BTHD, "k_BTKD": k_BTKD, "v_BTKV": v_BTKV, "q_rope_BTHR": q_rope, "k_rope_BTR": k_rope}
    scale = checks.attention("full_attention", tensors, documents, scale)["scale"]
    options = {"q_rope": q_rope, "k_rope": k_rope, "scale": scale, "documents": documents}
    options |= checks.score_options("full_attention", q_BTHD, sinks, softcap)
    return dispatch.call("full_attention", impl, q_BTHD, k_BTKD, v_BTKV, **options)
