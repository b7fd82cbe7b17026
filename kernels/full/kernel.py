"""Full attention in Triton: for packed documents, which torch's scaled_dot_product_attention does not know."""

import torch

from zoo.kernels.intervals.op import interval_attention


def full_attention(q_BTHD, k_BTKD, v_BTKV, *, q_rope, k_rope, scale, documents) -> torch.Tensor:
    """`zoo.kernels.full_attention`: o_BTHV."""
    tensors = q_BTHD, k_BTKD, v_BTKV
    return interval_attention(*tensors, q_rope=q_rope, k_rope=k_rope, scale=scale, documents=documents)[0]
