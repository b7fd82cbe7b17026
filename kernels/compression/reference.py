"""Attention over pooled blocks that lie wholly in the query's past, T x N scores in chunks of queries."""

import torch

from zoo.kernels.attend import attend, by_key_head, in_chunks, join_rotary, prefix, wide
from zoo.kernels.documents import starts


def visible_slots(start_Bc: torch.Tensor, token_c: torch.Tensor, n: int, block: int, stride: int) -> torch.Tensor:
    """bool [B, c, n]: the slots whose block lies in the document of the query and ends at or before it.

    start_Bc: first token of the query's document.  token_c: [c] or [B, c], the query's row index.
    """
    slot_n = torch.arange(n, device=start_Bc.device)
    last_Bcn = slot_n * stride + (start_Bc % stride + block - 1)[..., None]
    return (slot_n >= (start_Bc // stride)[..., None]) & (last_Bcn <= token_c[..., None])


def compression_attention(q_BTHD, k_BNKD, v_BNKV, *, q_rope, k_rope, block, stride, scale, documents):
    """`zoo.kernels.compression_attention`: o_BTHV, and its log-sum-exp lse_BTH without gradient."""
    batch, seq_len, n_heads, _ = q_BTHD.shape
    q, k = join_rotary(q_BTHD, k_BNKD, q_rope, k_rope)
    q_BKTgD, k_BKND, v_BKNV = by_key_head(q, k.shape[2]), k.transpose(1, 2), wide(v_BNKV).transpose(1, 2)
    start_BT = starts(documents, batch, seq_len, q.device)
    token_T = torch.arange(seq_len, device=q.device)

    def chunk(lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        n = prefix(max(0, hi - block) // stride + 1, k.shape[1])  # slots after these end in every query's future
        visible_B1cn = visible_slots(start_BT[:, lo:hi], token_T[lo:hi], n, block, stride).unsqueeze(1)
        o, scores = attend(q_BKTgD[:, :, lo:hi], k_BKND[:, :, :n], v_BKNV[:, :, :n], visible_B1cn, scale)
        empty = ~visible_B1cn.any(-1, keepdim=True)
        return o, scores.detach().logsumexp(-1).masked_fill(empty, float("-inf"))

    o_BKTgV, lse_BKTg = in_chunks(chunk, seq_len, batch * n_heads * k.shape[1], dim=2)
    return o_BKTgV.transpose(1, 2).flatten(2, 3).to(q_BTHD.dtype), lse_BKTg.transpose(1, 2).flatten(2, 3)
