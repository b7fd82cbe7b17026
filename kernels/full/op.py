"""Full attention in Triton: for packed documents, sinks and softcaps, which torch's kernels do not support."""

import torch

from zoo.kernels.shared_intervals.op import interval_attention


def full_attention(q_BTHD, k_BTKD, v_BTKV, *, q_rope, k_rope, scale, documents, sinks, softcap) -> torch.Tensor:
    """`zoo.kernels.full_attention`: o_BTHV."""
    options = {"scale": scale, "documents": documents, "sinks": sinks, "softcap": softcap}
    return interval_attention(q_BTHD, k_BTKD, v_BTKV, q_rope=q_rope, k_rope=k_rope, **options)[0]
