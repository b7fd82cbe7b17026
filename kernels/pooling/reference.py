"""Blocks of the compression grid, gathered or averaged, in plain torch."""

import torch
import torch.nn.functional as F

from zoo.kernels.attend import wide
from zoo.kernels.documents import Documents, n_slots
from zoo.kernels.layout import over


def gather_blocks(x_BTKD: torch.Tensor, *, block: int, stride: int, documents: Documents | None) -> torch.Tensor:
    """`zoo.kernels.gather_blocks`: [B, T, ...] -> [B, N, block, ...], zeros in slots that no block fills."""
    x_BNDL, filled_BN = _blocks(x_BTKD, block, stride, documents)
    return x_BNDL.masked_fill(~over(filled_BN, x_BNDL), 0.0).movedim(-1, 2)


def mean_pool(xs: list[torch.Tensor], *, block: int, stride: int, documents: Documents | None) -> list[torch.Tensor]:
    """`zoo.kernels.mean_pool`: the mean of each block, [B, T, ...] -> [B, N, ...] for each x, in its dtype."""
    return [_mean_pool(x_BTKD, block, stride, documents) for x_BTKD in xs]


def _mean_pool(x_BTKD: torch.Tensor, block: int, stride: int, documents: Documents | None) -> torch.Tensor:
    x_BNDL, filled_BN = _blocks(wide(x_BTKD), block, stride, documents)
    mean_BND = x_BNDL.mean(-1)
    return mean_BND.masked_fill(~over(filled_BN, mean_BND), 0.0).to(x_BTKD.dtype)


def _blocks(x: torch.Tensor, block: int, stride: int, documents: Documents | None):
    """Blocks [B, N, ..., L] and which slots are filled, bool [B or 1, N]."""
    batch, seq_len = x.shape[:2]
    n = n_slots(seq_len, stride)
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, (n - 1) * stride + block - seq_len))
    if documents is None:  # a view: overlapping blocks cost no memory
        filled_1N = torch.arange(n, device=x.device)[None] * stride + block <= seq_len
        return padded.unfold(1, block, stride), filled_1N
    first_BN = documents.slots(block, stride)
    token_BNL = first_BN.clamp(min=0)[..., None] + torch.arange(block, device=x.device)
    row_B11 = torch.arange(batch, device=x.device)[:, None, None]
    return padded[row_B11, token_BNL].movedim(2, -1), first_BN >= 0
