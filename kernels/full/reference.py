"""Causal attention over all earlier keys, plainly: scores, mask, softmax, weighted sum, in chunks of queries."""

import torch

from zoo.kernels.attend import attend, by_key_head, in_chunks, join_rotary, prefix, sinks_by_key_head, wide
from zoo.kernels.documents import starts


def full_attention(q_BTHD, k_BTKD, v_BTKV, *, q_rope, k_rope, scale, documents, sinks, softcap):
    """`zoo.kernels.full_attention`: o_BTHV."""
    batch, seq_len, n_heads, _ = q_BTHD.shape
    q, k = join_rotary(q_BTHD, k_BTKD, q_rope, k_rope)
    q_BKTgD, k_BKTD, v_BKTV = by_key_head(q, k.shape[2]), k.transpose(1, 2), wide(v_BTKV).transpose(1, 2)
    start_BT = starts(documents, batch, seq_len, q.device)
    token_T = torch.arange(seq_len, device=q.device)
    options = {"sinks": sinks_by_key_head(sinks, k.shape[2], 1), "softcap": softcap}

    def chunk(lo: int, hi: int) -> torch.Tensor:
        n = prefix(hi, seq_len)
        key, query = token_T[:n], token_T[lo:hi, None]
        visible_B1cn = ((key <= query) & (key >= start_BT[:, lo:hi, None])).unsqueeze(1)
        keys = k_BKTD[:, :, :n], v_BKTV[:, :, :n]
        return attend(q_BKTgD[:, :, lo:hi], *keys, visible_B1cn, scale, **options)[0]

    o_BKTgV = in_chunks(chunk, seq_len, batch * n_heads * seq_len, dim=2)
    return o_BKTgV.transpose(1, 2).flatten(2, 3).to(q_BTHD.dtype)
