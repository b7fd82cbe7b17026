"""Attention of new tokens to what a cache holds: decoding, and prompts read in chunks.

Every query has a position of its own, so the rows of a batch may have different lengths; keys lie in slots. The
cache may hold latents instead of keys and values: with the queries absorbed into it (DeepSeek-V2, arXiv 2405.04434,
section 2.1.2) a latent head is key and value at once, and k and v are the same tensor. J counts the heads of the
cache, which the H query heads share evenly. Nothing here carries a gradient.
"""

import torch

from zoo.kernels import checks, dispatch


def why_not_triton(q, k, v, *others, q_rope=None, **options) -> str | None:
    """A reason why the kernels of decoding cannot serve the call, or None."""
    if max(x.shape[-1] for x in (q, v) if x is not None) > 512 or (q_rope is not None and q_rope.shape[-1] > 128):
        return "its heads are up to 512 wide, their rotary parts up to 128"
    return dispatch.why_not_triton(q)


def _triton_selects(q, k, v, chosen, position, *, selection_block, **options) -> str | None:
    if selection_block not in (16, 32, 64, 128):
        return f"its blocks are of 16, 32, 64 or 128 tokens, not {selection_block}"
    return why_not_triton(q, k, v, **options)


dispatch.register(
    "cached_attention",
    dispatch.Implementation("triton", "zoo.kernels.decode.op:cached_attention", why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.decode.reference:cached_attention"),
)
dispatch.register(
    "cached_selection_attention",
    dispatch.Implementation("triton", "zoo.kernels.decode.op:cached_selection_attention", _triton_selects),
    dispatch.Implementation("reference", "zoo.kernels.decode.reference:cached_selection_attention"),
)


@torch.no_grad()
def cached_attention(
    q_BTHD: torch.Tensor,
    k_BNJD: torch.Tensor,
    v_BNJV: torch.Tensor,
    first_BT: torch.Tensor,
    end_BT: torch.Tensor,
    *,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each query to the slots first_BT .. end_BT - 1 of the cache, integers; of those, 0 to N - 1 exist.

    Query head h reads cache head h // (H / J); scores, sinks and rotary parts as `full_attention`.
    Returns o_BTHV in the input dtype and lse_BTH, which sinks count in, float32 (float64 for float64 input). A query
    whose interval is empty has o = 0, and without sinks lse = -inf.
    Raises ValueError if shapes, dtypes or devices do not agree, or `impl` cannot serve the call.
    """
    op = "cached_attention"
    tensors = {"q_BTHD": q_BTHD, "k_BNKD": k_BNJD, "v_BNKV": v_BNJV, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope}
    found = checks.attention(op, tensors, None, scale)
    checks.integers(op, found, first_BT=first_BT, end_BT=end_BT)
    options = {"q_rope": q_rope, "k_rope": k_rope, "scale": found["scale"]}
    options |= checks.score_options(op, q_BTHD, sinks, softcap)
    return dispatch.call(op, impl, q_BTHD, k_BNJD, v_BNJV, first_BT, end_BT, **options)


@torch.no_grad()
def cached_selection_attention(
    q_BTHD: torch.Tensor,
    k_BNJD: torch.Tensor,
    v_BNJV: torch.Tensor,
    chosen_BTKS: torch.Tensor,
    position_BT: torch.Tensor,
    *,
    selection_block: int,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention to the tokens of the chosen blocks that are not after the query; slot i of the cache holds token i.

    chosen_BTKS: int32, as `cached_choose_blocks` returns it; query head h reads the choice of group h // (H / K). Any
    number of a block that the query cannot see is an empty place; a block that is named twice has twice the weight.
    Returns o_BTHV in the input dtype; a query that sees nothing yields zeros.
    Raises ValueError if shapes, dtypes or devices do not agree, or `impl` cannot serve the call.
    """
    op = "cached_selection_attention"
    tensors = {"q_BTHD": q_BTHD, "k_BNKD": k_BNJD, "v_BNKV": v_BNJV, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope}
    found = checks.attention(op, tensors, None, scale)
    checks.integers(op, found, position_BT=position_BT)
    checks.at_least(op, 1, selection_block=selection_block)
    checks.cached_chosen(op, found, chosen_BTKS)
    options = {"q_rope": q_rope, "k_rope": k_rope, "scale": found["scale"]}
    options["selection_block"] = selection_block
    return dispatch.call(op, impl, q_BTHD, k_BNJD, v_BNJV, chosen_BTKS, position_BT, **options)
