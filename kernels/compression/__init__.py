"""Attention over pooled blocks of keys and values."""

from typing import Any

import torch

from zoo.kernels import checks, dispatch, shared_intervals
from zoo.kernels.documents import Documents

dispatch.register(
    "compression_attention",
    dispatch.Implementation("triton", "zoo.kernels.compression.op:compression_attention", shared_intervals.why_not),
    dispatch.Implementation("reference", "zoo.kernels.compression.reference:compression_attention"),
)


def compression_attention(
    q_BTHD: torch.Tensor,
    k_BNKD: torch.Tensor,
    v_BNKV: torch.Tensor,
    *,
    block: int,
    stride: int,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over pooled keys and values, N slots as `mean_pool` fills them (NSA, arXiv 2502.11089, eq. 7).

    q_rope, k_rope: [B, T, H, R] and [B, N, R], both or neither; k_rope is shared by all heads.
    Query t sees block j of its document when the whole block is in its past: j s + l - 1 <= position of t.
    Returns o_BTHV in the input dtype, and lse_BTH, the log-sum-exp of each query's scores, float32 (float64 for float64
    input), for `choose_blocks`; no gradient flows through lse. A query that sees no block has o = 0 and lse = -inf.
    Raises ValueError if shapes, dtypes or devices do not agree, block < stride, or `impl` cannot serve the call.
    """
    op = "compression_attention"
    tensors = {"q_BTHD": q_BTHD, "k_BNKD": k_BNKD, "v_BNKV": v_BNKV, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope}
    found = checks.attention(op, tensors, documents, scale)
    checks.compression_grid(op, block, stride)
    checks.slots_fit(op, found["N"], found["T"], stride)
    options: dict[str, Any] = {"q_rope": q_rope, "k_rope": k_rope, "block": block, "stride": stride}
    options |= {"scale": found["scale"], "documents": documents}
    return dispatch.call(op, impl, q_BTHD, k_BNKD, v_BNKV, **options)
