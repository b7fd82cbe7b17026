"""The choice of blocks for new tokens, over the pooled slots of a cache. Nothing here carries a gradient."""

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.decode import why_not_triton


def _why_not_triton(q, k, lse, position, previous, **options) -> str | None:
    return why_not_triton(q, k, None, **options)


dispatch.register(
    "cached_choose_blocks",
    dispatch.Implementation("triton", "zoo.kernels.decode_choice.op:cached_choose_blocks", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.decode_choice.reference:cached_choose_blocks"),
)


@torch.no_grad()
def cached_choose_blocks(
    q_BTHD: torch.Tensor,
    k_BNJD: torch.Tensor,
    lse_BTH: torch.Tensor,
    position_BT: torch.Tensor,
    previous_BKS: torch.Tensor,
    *,
    compression_block: int,
    compression_stride: int,
    selection_block: int,
    n_init: int = 1,
    n_local: int = 2,
    query_group: int = 1,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """As `choose_blocks`, for queries at positions position_BT over the pooled slots of a cache.

    position_BT: integers, consecutive in a row; only the first of a row is read.
    previous_BKS: int32, the latest choice of each row, for the queries of a group that began before these.  K, the
    number of groups of heads with a choice of their own, is a multiple of J; S is n_selected.
    Returns chosen_BTKS int32: for each query the choice made for the first query of its group.
    Raises ValueError as `choose_blocks`.
    """
    op = "cached_choose_blocks"
    tensors = {"q_BTHD": q_BTHD, "k_BNJD": k_BNJD, "lse_BTH": lse_BTH, "q_rope_BTHR": q_rope, "k_rope_BNR": k_rope}
    found = checks.cached_choice(op, tensors, previous_BKS, scale)
    checks.integers(op, found, position_BT=position_BT)
    checks.selection_grid(op, selection_block, query_group)
    checks.compression_grid(op, compression_block, compression_stride)
    checks.choice_grid(
        op, compression_block, compression_stride, selection_block, previous_BKS.shape[2], n_init, n_local
    )
    return dispatch.call(
        op, impl, q_BTHD, k_BNJD, lse_BTH, position_BT, previous_BKS,
        compression_block=compression_block, compression_stride=compression_stride, selection_block=selection_block,
        n_init=n_init, n_local=n_local, query_group=query_group, q_rope=q_rope, k_rope=k_rope,
        scale=found["scale"],
    )  # fmt: skip
