"""Window attention in Triton: faster than compiled FlexAttention at every size measured (docs/log.md)."""

import torch

from zoo.kernels.shared_intervals.op import interval_attention


def window_attention(
    q_BTHD, k_BTKD, v_BTKV, *, window, q_rope, k_rope, scale, documents, sinks, softcap
) -> torch.Tensor:
    """`zoo.kernels.window_attention`: o_BTHV."""
    options = {"scale": scale, "documents": documents, "sinks": sinks, "softcap": softcap, "window": window}
    return interval_attention(q_BTHD, k_BTKD, v_BTKV, q_rope=q_rope, k_rope=k_rope, **options)[0]
