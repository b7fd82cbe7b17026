"""Window attention in Triton: quicker than compiled FlexAttention at every size measured (docs/log.md)."""

import torch

from zoo.kernels.intervals.op import interval_attention


def window_attention(q_BTHD, k_BTKD, v_BTKV, *, window, q_rope, k_rope, scale, documents) -> torch.Tensor:
    """`zoo.kernels.window_attention`: o_BTHV."""
    tensors = q_BTHD, k_BTKD, v_BTKV
    return interval_attention(*tensors, q_rope=q_rope, k_rope=k_rope, scale=scale, documents=documents, window=window)[
        0
    ]
