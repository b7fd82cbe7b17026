"""The choice of the blocks that selection attention reads."""

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.documents import Documents


def _why_not_triton(q, *others, compression_stride, selection_block, n_selected, q_rope=None, **options) -> str | None:
    pieces = selection_block // compression_stride
    if pieces & (pieces - 1):
        return f"a selection block must be a power of two of strides, not {pieces}"
    if n_selected > 128 or max(x.shape[-1] for x in (q, q_rope) if x is not None) > 256:
        return "it chooses up to 128 blocks, by heads up to 256 wide"
    return dispatch.why_not_triton(q)


dispatch.register(
    "choose_blocks",
    dispatch.Implementation("triton", "zoo.kernels.choice.op:choose_blocks", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.choice.reference:choose_blocks"),
)


def choose_blocks(
    q_BTHD: torch.Tensor,
    k_BNKD: torch.Tensor,
    lse_BTH: torch.Tensor,
    *,
    compression_block: int,
    compression_stride: int,
    selection_block: int,
    n_selected: int,
    n_init: int = 1,
    n_local: int = 2,
    query_group: int = 1,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Choose the S most important selection blocks for each query group (NSA, arXiv 2502.11089, eq. 8-12).

    q_BTHD, k_BNKD, rotary parts, scale: as given to `compression_attention`.  lse_BTH: what it returned.
    The first query of each group is scored. The importance of block m is what the heads of a key head attend, together,
    to the compression blocks that overlap m, each weighted by the stride-sized pieces it shares with m. The first
    `n_init` blocks are always chosen, and so are the query's own and those before it, `n_local` in all.
    Returns chosen_BGKS int32, S = n_selected, G = n_groups(T, query_group, documents): block numbers inside the
    document, ascending, -1 = empty place, at the end.  Not differentiable.
    Raises ValueError if shapes, dtypes or devices do not agree, stride, blocks and groups do not divide one another,
    n_selected is less than the forced blocks, or `impl` cannot serve the call.
    Left open by the paper, chosen here: ties go to the lower index.
    """
    op = "choose_blocks"
    tensors = {"q_BTHD": q_BTHD, "k_BNKD": k_BNKD, "lse_BTH": lse_BTH, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope}
    found = checks.attention(op, tensors, documents, scale)
    checks.compression_grid(op, compression_block, compression_stride)
    checks.slots_fit(op, found["N"], found["T"], compression_stride)
    checks.selection_grid(op, selection_block, query_group)
    checks.choice_grid(op, compression_block, compression_stride, selection_block, n_selected, n_init, n_local)
    options = {"q_rope": q_rope, "k_rope": k_rope, "scale": found["scale"], "documents": documents}
    options |= {"compression_block": compression_block, "compression_stride": compression_stride}
    options |= {"selection_block": selection_block, "n_selected": n_selected, "n_init": n_init, "n_local": n_local}
    return dispatch.call(op, impl, q_BTHD, k_BNKD, lse_BTH, query_group=query_group, **options)
