"""Attention over the tokens of chosen blocks."""

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.documents import Documents


def _why_not_sdpa(q, k, v, chosen, *, selection_block, query_group, documents, **options) -> str | None:
    """A dense mask wastes T / (S b) times the work; gathering keys costs about 8 / sqrt(q) times (measured)."""
    if documents is not None:
        return "it knows no packed documents"
    longest = int(8 * chosen.shape[3] * selection_block / query_group**0.5)
    return f"a dense mask pays for rows of up to {longest} tokens here" if q.shape[1] > longest else None


def _why_not_triton(q, k, v, chosen, *, selection_block, query_group, q_rope=None, **options) -> str | None:
    if selection_block not in (16, 32, 64, 128):
        return f"its blocks are of 16, 32, 64 or 128 tokens, not {selection_block}"
    if query_group > 16 or chosen.shape[3] > 128:
        return f"it takes groups of up to 16 queries and 128 blocks, not {query_group} and {chosen.shape[3]}"
    if max(x.shape[-1] for x in (q, v, q_rope) if x is not None) > 256:
        return "its heads are up to 256 wide"
    return dispatch.why_not_triton(q)


dispatch.register(
    "selection_attention",
    dispatch.Implementation("triton", "zoo.kernels.selection.op:selection_attention", _why_not_triton),
    dispatch.Implementation("sdpa", "zoo.kernels.selection.sdpa:selection_attention", _why_not_sdpa),
    dispatch.Implementation("reference", "zoo.kernels.selection.reference:selection_attention"),
)


def selection_attention(
    q_BTHD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTKV: torch.Tensor,
    chosen_BGKS: torch.Tensor,
    *,
    selection_block: int,
    query_group: int = 1,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention over the chosen blocks of tokens that are not in the query's future (NSA, arXiv 2502.11089, eq. 5-12).

    chosen_BGKS: int32, as `choose_blocks` returns it: m means tokens a + m b .. a + (m + 1) b - 1 of the document that
    starts at a, in any order. A negative number is an empty place, and so is a block after the query's own, in the
    document or beyond it. A block that is named twice has twice the weight. All queries of a group read the
    blocks of their group, each under its own causal mask. Scores and rotary parts as `full_attention`.
    Returns o_BTHV in the input dtype; scores and sums are float32 (float64 for float64 input).
    A query that sees nothing yields zeros.
    Raises ValueError if shapes, dtypes or devices do not agree, selection_block is not a multiple of query_group, or
    `impl` cannot serve the call.
    """
    op = "selection_attention"
    tensors = {"q_BTHD": q_BTHD, "k_BTKD": k_BTKD, "v_BTKV": v_BTKV, "q_rope_BTHR": q_rope, "k_rope_BTR": k_rope}
    found = checks.attention(op, tensors, documents, scale)
    checks.selection_grid(op, selection_block, query_group)
    checks.chosen_fits(op, chosen_BGKS, found, query_group, documents)
    options = {"q_rope": q_rope, "k_rope": k_rope, "scale": found["scale"], "documents": documents}
    options |= {"selection_block": selection_block, "query_group": query_group}
    return dispatch.call(op, impl, q_BTHD, k_BTKD, v_BTKV, chosen_BGKS, **options)
