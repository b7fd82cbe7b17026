"""Writing to a cache: the public functions, their references, and the launches of their kernels."""

from __future__ import annotations

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.layout import dense_rows, is_flat, over

CHANNELS = 512  # of a program of the kernels


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
    dispatch.Implementation("triton", "zoo.kernels.decode.writing:_write_triton", _triton_writes),
    dispatch.Implementation("reference", "zoo.kernels.decode.writing:_write_reference"),
)
dispatch.register(
    "pool_slots",
    dispatch.Implementation("triton", "zoo.kernels.decode.writing:_pool_triton", _triton_pools),
    dispatch.Implementation("reference", "zoo.kernels.decode.writing:_pool_reference"),
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
    """Check that there is one of `others` [B, any, ...] for each kept [B, N, ...], of its entries' shape, beside it.

    A kernel would write past the end of its tensor, and a launch that is remembered looks at no tensor's device.
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


def _write_reference(kept, new, position_BT, wanted_BT) -> None:
    row_B1 = torch.arange(len(position_BT), device=position_BT.device)[:, None]
    position_BT = position_BT[:, :1] + torch.arange(position_BT.shape[1], device=position_BT.device)
    for to, x in zip(kept, new, strict=True):
        slot_BT, x = position_BT % to.shape[1], x.to(to.dtype)
        if wanted_BT is not None:
            x = torch.where(over(wanted_BT, x), x, to[row_B1, slot_BT])
        to[row_B1, slot_BT] = x


def _pool_reference(kept, pooled, start_B, n_new_B, *, seq_len, block, stride) -> None:
    block_BM, complete_BM = completed(start_B, n_new_B, seq_len, block, stride)
    token_BML = (block_BM * stride)[..., None] + torch.arange(block, device=start_B.device)
    row_B11 = torch.arange(len(token_BML), device=start_B.device)[:, None, None]
    means = []
    for x in kept:
        x_BML = x[row_B11, token_BML % x.shape[1]]
        means.append((x_BML if x.dtype == torch.float64 else x_BML.float()).mean(2))
    _write_reference(pooled, means, block_BM, complete_BM)


def completed(
    start_B: torch.Tensor, n_new_B: torch.Tensor | None, seq_len: int, block: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks that seq_len new tokens may complete, int64 [B, M], and whether they do, bool."""
    first_B = (start_B + stride - block).clamp(min=0) // stride
    block_BM = first_B[:, None] + torch.arange(-(-seq_len // stride), device=start_B.device)
    end_B = start_B + (seq_len if n_new_B is None else n_new_B)
    return block_BM, block_BM * stride + block <= end_B[:, None]


def _write_triton(kept, new, position_BT, wanted_BT) -> None:
    from zoo.kernels.decode.writing_kernel import write_kernel

    (B, T), N = new[0].shape[:2], kept[0].shape[1]
    kept, new = _flat(kept), [dense_rows(x) for x in _flat(new)]
    position = position_BT.contiguous()
    wanted = position if wanted_BT is None else wanted_BT.contiguous()
    pairs = [x for pair in zip(kept, new, strict=True) for x in pair]
    constants = {**_channels(kept), "HAS_WANTED": wanted_BT is not None}
    _launch(write_kernel, B * T, pairs, (position, wanted, T, N), constants)


def _pool_triton(kept, pooled, start_B, n_new_B, *, seq_len, block, stride) -> None:
    from zoo.kernels.decode.writing_kernel import pool_kernel
    from zoo.kernels.launching import next_power_of_2

    n_blocks, N, n_pooled = -(-seq_len // stride), kept[0].shape[1], pooled[0].shape[1]
    kept, pooled = _flat(kept), _flat(pooled)
    pairs = [x for pair in zip(kept, pooled, strict=True) for x in pair]
    constants = {**_channels(kept, 128), "BLOCK": block, "BLOCK_PADDED": next_power_of_2(block), "STRIDE": stride}
    constants["HAS_N_NEW"] = n_new_B is not None
    start = start_B.contiguous()
    n_new = start if n_new_B is None else n_new_B.contiguous()
    _launch(pool_kernel, len(start) * n_blocks, pairs, (start, n_new, seq_len, n_blocks, N, n_pooled), constants)


def _launch(kernel, programs: int, pairs: list[torch.Tensor], numbers: tuple, constants: dict) -> None:
    from zoo.kernels.launching import cdiv, launch

    if len(pairs) == 2:
        pairs = pairs * 2  # pointers that are not followed: C1 is 0
    grid = (programs, cdiv(max(constants["C0"], constants["C1"]), constants["CP"]))
    strides = [stride for x in pairs for stride in x.stride()[:2]]
    launch(kernel, lambda tile: grid, (*pairs, *numbers, *strides), constants, _TILES, pairs[0].device)


_TILES = [dict(num_warps=4)]


def _channels(kept: list[torch.Tensor], most: int = CHANNELS) -> dict[str, int]:
    from zoo.kernels.launching import next_power_of_2

    widths = [x.shape[2] for x in kept]
    widths += [0] * (2 - len(widths))
    return {"C0": widths[0], "C1": widths[1], "CP": min(most, next_power_of_2(max(widths)))}


def _flat(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """[B, N, channels]; of a cache it is a view."""
    return [x.flatten(2) if x.dim() > 3 else x for x in tensors]
