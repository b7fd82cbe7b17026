"""The short convolution in plain torch, as a sum of shifted rows."""

import torch
import torch.nn.functional as F

from zoo.kernels.documents import Documents
from zoo.kernels.layout import wide


def short_convolution(
    x_BTC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias_C: torch.Tensor | None,
    *,
    documents: Documents | None,
    tail_BNC: torch.Tensor | None,
) -> torch.Tensor:
    """`zoo.kernels.short_convolution`."""
    width, seq_len = weight_CW.shape[1], x_BTC.shape[1]
    x = wide(x_BTC)
    padded = F.pad(x, (0, 0, width - 1, 0)) if tail_BNC is None else torch.cat((tail_BNC.to(x.dtype), x), 1)
    total = x * weight_CW[:, -1].to(x.dtype)
    for back in range(1, width):
        first = width - 1 - back
        shifted = padded[:, first : first + seq_len]
        if documents is not None:
            shifted = torch.where((documents.position_BT >= back)[..., None], shifted, 0.0)
        total = total + shifted * weight_CW[:, first].to(x.dtype)
    if bias_C is not None:
        total = total + bias_C.to(x.dtype)
    return F.silu(total).to(x_BTC.dtype)
