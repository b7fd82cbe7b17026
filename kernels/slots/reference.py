"""Writing to a cache in plain torch."""

from __future__ import annotations

import torch

from zoo.kernels.layout import over


def write_slots(kept, new, position_BT, wanted_BT) -> None:
    """`zoo.kernels.write_slots`."""
    row_B1 = torch.arange(len(position_BT), device=position_BT.device)[:, None]
    position_BT = position_BT[:, :1] + torch.arange(position_BT.shape[1], device=position_BT.device)
    for to, x in zip(kept, new, strict=True):
        slot_BT, x = position_BT % to.shape[1], x.to(to.dtype)
        if wanted_BT is not None:
            x = torch.where(over(wanted_BT, x), x, to[row_B1, slot_BT])
        to[row_B1, slot_BT] = x


def pool_slots(kept, pooled, start_B, n_new_B, *, seq_len, block, stride) -> None:
    """`zoo.kernels.pool_slots`."""
    block_BM, complete_BM = completed(start_B, n_new_B, seq_len, block, stride)
    token_BML = (block_BM * stride)[..., None] + torch.arange(block, device=start_B.device)
    row_B11 = torch.arange(len(token_BML), device=start_B.device)[:, None, None]
    means = []
    for x in kept:
        x_BML = x[row_B11, token_BML % x.shape[1]]
        means.append((x_BML if x.dtype == torch.float64 else x_BML.float()).mean(2))
    write_slots(pooled, means, block_BM, complete_BM)


def completed(
    start_B: torch.Tensor, n_new_B: torch.Tensor | None, seq_len: int, block: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks that seq_len new tokens may complete, int64 [B, M], and whether they do, bool."""
    first_B = (start_B + stride - block).clamp(min=0) // stride
    block_BM = first_B[:, None] + torch.arange(-(-seq_len // stride), device=start_B.device)
    end_B = start_B + (seq_len if n_new_B is None else n_new_B)
    return block_BM, block_BM * stride + block <= end_B[:, None]
