"""Attention over pooled blocks of keys and values, and the pooling."""

from collections.abc import Sequence
from typing import Any

import torch

from zoo.kernels import checks, dispatch, intervals
from zoo.kernels.documents import Documents


def _triton_pools(xs, **options) -> str | None:
    for x in xs:
        reason = dispatch.why_not_triton(x)
        if reason:
            return reason
    return None


dispatch.register(
    "gather_blocks", dispatch.Implementation("reference", "zoo.kernels.compression.pooling:gather_blocks")
)
dispatch.register(
    "mean_pool",
    dispatch.Implementation("triton", "zoo.kernels.compression.pool_kernel:mean_pool", _triton_pools),
    dispatch.Implementation("reference", "zoo.kernels.compression.pooling:mean_pool"),
)
dispatch.register(
    "compression_attention",
    dispatch.Implementation("triton", "zoo.kernels.compression.kernel:compression_attention", intervals.why_not),
    dispatch.Implementation("reference", "zoo.kernels.compression.reference:compression_attention"),
)


def gather_blocks(
    x_BTKD: torch.Tensor, *, block: int, stride: int, documents: Documents | None = None, impl: str = "auto"
) -> torch.Tensor:
    """The tokens of every compression block, for a learned pooling: x_BNLKD, zeros where a slot is empty.

    x_BTKD: any float dtype; [B, T, D] works as well and gives x_BNLD. Block j of a document that starts at row index a
    (tokens a + j s .. a + j s + l - 1, all in the document) lies in slot a // s + j; N = n_slots(T, s).
    Raises ValueError if block < stride, or documents are of another shape or device.
    """
    checks.pooling("gather_blocks", [x_BTKD], block, stride, documents)
    return dispatch.call("gather_blocks", impl, x_BTKD, block=block, stride=stride, documents=documents)


def mean_pool(
    x_BTKD: torch.Tensor | Sequence[torch.Tensor],
    *,
    block: int,
    stride: int,
    documents: Documents | None = None,
    impl: str = "auto",
) -> torch.Tensor | list[torch.Tensor]:
    """The mean of every compression block: x_BNKD in the dtype of x, zeros where a slot is empty.

    Blocks, slots and errors as in `gather_blocks`; [B, T, D] gives x_BND. Sums are float32 (float64 for float64 input).
    A sequence of tensors of one batch, as the keys and values of a layer, gives a list, and takes one launch.
    """
    xs = [x_BTKD] if isinstance(x_BTKD, torch.Tensor) else list(x_BTKD)
    checks.pooling("mean_pool", xs, block, stride, documents)
    pooled = dispatch.call("mean_pool", impl, xs, block=block, stride=stride, documents=documents)
    return pooled[0] if isinstance(x_BTKD, torch.Tensor) else pooled


def compression_attention(
    q_BTHD: torch.Tensor,
    k_BNKD: torch.Tensor,
    v_BNKV: torch.Tensor,
    *,
    block: int,
    stride: int,
    q_rope: torch.Tensor | None = None,
    k_rope_BNR: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over pooled keys and values, N slots as `mean_pool` fills them (NSA, arXiv 2502.11089, eq. 7).

    Query t sees block j of its document when the whole block is in its past: j s + l - 1 <= position of t.
    Returns o_BTHV in the input dtype, and lse_BTH, the log-sum-exp of each query's scores, float32 (float64 for float64
    input), for `choose_blocks`; no gradient flows through lse. A query that sees no block has o = 0 and lse = -inf.
    Raises ValueError if shapes, dtypes or devices do not agree, block < stride, or `impl` cannot serve the call.
    """
    op = "compression_attention"
    tensors = {"q_BTHD": q_BTHD, "k_BNKD": k_BNKD, "v_BNKV": v_BNKV, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope_BNR}
    found = checks.attention(op, tensors, documents, scale)
    checks.compression_grid(op, block, stride)
    checks.slots_fit(op, found["N"], found["T"], stride)
    options: dict[str, Any] = {"q_rope": q_rope, "k_rope_BNR": k_rope_BNR, "block": block, "stride": stride}
    options |= {"scale": found["scale"], "documents": documents}
    return dispatch.call(op, impl, q_BTHD, k_BNKD, v_BNKV, **options)
