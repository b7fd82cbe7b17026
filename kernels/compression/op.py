"""Compression attention in Triton: key i is the block in slot i, seen once it is wholly in the past."""

import torch

from zoo.kernels.shared_intervals.op import interval_attention


def compression_attention(
    q_BTHD, k_BNKD, v_BNKV, *, q_rope, k_rope, block, stride, scale, documents
) -> tuple[torch.Tensor, torch.Tensor]:
    """`zoo.kernels.compression_attention`: o_BTHV, and its log-sum-exp lse_BTH, float32 and without gradient."""
    o_BTHV, lse_BTH = interval_attention(
        q_BTHD,
        k_BNKD,
        v_BNKV,
        q_rope=q_rope,
        k_rope=k_rope,
        scale=scale,
        documents=documents,
        stride=stride,
        block=block,
    )
    return o_BTHV, lse_BTH.detach()
