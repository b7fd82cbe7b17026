"""Blocks of the compression grid, gathered or averaged."""

import torch
import torch.nn.functional as F

from zoo.kernels import checks
from zoo.kernels.documents import Documents, n_slots


def gather_blocks(x_BTKD: torch.Tensor, *, block: int, stride: int, documents: Documents | None = None) -> torch.Tensor:
    """The tokens of every compression block, for a learned pooling: x_BNLKD, zeros where a slot is empty.

    x_BTKD: any float dtype; [B, T, D] works as well and gives x_BNLD. Block j of a document that starts at row index a
    (tokens a + j s .. a + j s + l - 1, all in the document) lies in slot a // s + j.
    Raises ValueError if block < stride or documents are of another shape.
    """
    x_BNDL, filled_BN = _blocks("gather_blocks", x_BTKD, block, stride, documents)
    filled = filled_BN.view(*filled_BN.shape, *[1] * (x_BNDL.dim() - 2))
    return x_BNDL.masked_fill(~filled, 0.0).movedim(-1, 2)


def mean_pool(x_BTKD: torch.Tensor, *, block: int, stride: int, documents: Documents | None = None) -> torch.Tensor:
    """The mean of every compression block: x_BNKD in the dtype of x, zeros where a slot is empty.

    Blocks and slots as in `gather_blocks`; [B, T, D] gives x_BND. The sum is taken in float32 at least.
    """
    wide = x_BTKD if x_BTKD.dtype == torch.float64 else x_BTKD.float()
    x_BNDL, filled_BN = _blocks("mean_pool", wide, block, stride, documents)
    filled = filled_BN.view(*filled_BN.shape, *[1] * (x_BTKD.dim() - 2))
    return x_BNDL.mean(-1).masked_fill(~filled, 0.0).to(x_BTKD.dtype)


def _blocks(op: str, x: torch.Tensor, block: int, stride: int, documents: Documents | None):
    """Blocks [B, N, ..., L] and which slots are filled, bool [B or 1, N]."""
    checks.compression_grid(op, block, stride)
    if x.dim() not in (3, 4) or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(f"{op}: x must be floating [B, T, K, D] or [B, T, D]; found {x.dtype} {list(x.shape)}.")
    batch, seq_len = x.shape[:2]
    checks.documents_fit(op, documents, batch, seq_len, x.device)
    n = n_slots(seq_len, stride)
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, (n - 1) * stride + block - seq_len))
    if documents is None:  # a view: overlapping blocks cost no memory
        filled_1N = torch.arange(n, device=x.device)[None] * stride + block <= seq_len
        return padded.unfold(1, block, stride), filled_1N
    first_BN = documents.slots(block, stride)
    token_BNL = first_BN.clamp(min=0)[..., None] + torch.arange(block, device=x.device)
    row_B11 = torch.arange(batch, device=x.device)[:, None, None]
    return padded[row_B11, token_BNL].movedim(2, -1), first_BN >= 0
