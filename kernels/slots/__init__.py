"""Writing to a cache: the entries of new tokens, and the means of the blocks that they complete. In place."""

from __future__ import annotations

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.layout import is_flat


def _triton_writes(kept, *others, **options) -> str | None:
    if len(kept) > 2:
        return f"it writes one or two tensors, not {len(kept)}"
    if not all(map(is_flat, kept)):
        return "the channels of an entry must lie side by side in the cache"
    return dispatch.why_not_triton(kept)


def _triton_pools(kept, pooled, *others, **options) -> str | None:
    return _triton_writes(pooled) or _triton_writes(kept)


dispatch.register(
    "write_slots",
    dispatch.Implementation("triton", "zoo.kernels.slots.op:write_slots", _triton_writes),
    dispatch.Implementation("reference", "zoo.kernels.slots.reference:write_slots"),
)
dispatch.register(
    "pool_slots",
    dispatch.Implementation("triton", "zoo.kernels.slots.op:pool_slots", _triton_pools),
    dispatch.Implementation("reference", "zoo.kernels.slots.reference:pool_slots"),
)


@torch.no_grad()
def write_slots(
    kept: list[torch.Tensor],
    new: list[torch.Tensor],
    position_BT: torch.Tensor,
    wanted_BT: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> None:
    """kept[b, position_BT[b, t] mod N] = new[b, t], in place, for each pair of kept [B, N, ...] and new [B, T, ...].

    position_BT: int64 [B or 1, T], consecutive in a row, T at most N; only the first of a row is read.
    wanted_BT: bool [B or 1, T]; the rest is left alone.
    Raises ValueError if shapes, dtypes or devices do not agree, or T is above N.
    """
    op = "write_slots"
    _pairs_fit(op, kept, new, "new")
    rows, slots, seq_len = *kept[0].shape[:2], new[0].shape[1]
    if seq_len > slots:
        raise ValueError(f"{op}: T must be at most the {slots} slots; found {seq_len}.")
    whole = (torch.int32, torch.int64)
    checks.of_tokens(op, "position_BT", position_BT, (rows, seq_len), whole, kept[0].device)
    if wanted_BT is not None:
        checks.of_tokens(op, "wanted_BT", wanted_BT, (rows, seq_len), (torch.bool,), kept[0].device)
    wanted_BT = None if wanted_BT is None else wanted_BT.expand(rows, -1)
    dispatch.call("write_slots", impl, kept, new, position_BT.expand(rows, -1), wanted_BT)


@torch.no_grad()
def pool_slots(
    kept: list[torch.Tensor],
    pooled: list[torch.Tensor],
    start_B: torch.Tensor,
    n_new_B: torch.Tensor | None,
    seq_len: int,
    *,
    block: int,
    stride: int,
    impl: str = "auto",
) -> None:
    """Put the mean of each compression block that ends in the new tokens in its slot of `pooled` [B, M, ...], in place.

    kept: [B, N, ...], position p in slot p mod N; it holds the new tokens and the block - 1 before them.
    start_B: int64, tokens held before them.  n_new_B: int64, how many of seq_len are real; None: all.
    A block that `pooled` has no slot for goes to slot j mod M.  Sums are float32 (float64 for float64 input).
    Raises ValueError if shapes, dtypes or devices do not agree, seq_len is less than 1, or block less than stride.
    """
    op = "pool_slots"
    _pairs_fit(op, kept, pooled, "pooled")
    checks.at_least(op, 1, seq_len=seq_len)
    checks.compression_grid(op, block, stride)
    for name, numbers in {"start_B": start_B, "n_new_B": n_new_B}.items():
        if numbers is not None:
            checks.of_rows(op, name, numbers, len(kept[0]), kept[0].device)
    options = {"seq_len": seq_len, "block": block, "stride": stride}
    dispatch.call("pool_slots", impl, kept, pooled, start_B, n_new_B, **options)


def _pairs_fit(op: str, kept: list[torch.Tensor], others: list[torch.Tensor], name: str) -> None:
    """Check that there is one of `others` [B, any, ...] for each kept [B, N, ...], with entries of the same shape.

    Without the check a kernel could write past the end of a tensor: a remembered launch does not look at devices.
    """
    if len(kept) != len(others) or not kept:
        raise ValueError(f"{op}: kept and {name} must be as many, one or more; found {len(kept)} and {len(others)}.")
    for x, y in zip(kept, others, strict=True):
        if x.device != kept[0].device or y.device != kept[0].device:
            raise ValueError(f"{op}: all tensors must be on {kept[0].device}; found one on {x.device}, {y.device}.")
        entries = x.shape[:1] + x.shape[2:], y.shape[:1] + y.shape[2:]
        if x.dim() < 3 or x.dim() != y.dim() or entries[0] != entries[1] or 0 in x.shape or 0 in y.shape:
            raise ValueError(
                f"{op}: must be kept [B, N, ...] and {name} alike; found {list(x.shape)}, {list(y.shape)}."
            )
        if x.shape[:2] != kept[0].shape[:2] or y.shape[:2] != others[0].shape[:2]:
            found = f"{list(x.shape)}, {list(y.shape)}"
            raise ValueError(f"{op}: tensors written together must have one B and number of slots; found {found}.")
        if not (x.is_floating_point() and y.is_floating_point()):
            raise ValueError(f"{op}: kept and {name} must be floating-point tensors; found {x.dtype}, {y.dtype}.")
