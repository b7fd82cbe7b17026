"""Causal attention by torch's scaled_dot_product_attention, where each row is one document."""

import torch
import torch.nn.functional as F


def full_attention(q_BTHD, k_BTKD, v_BTKV, *, q_rope, k_rope, scale, documents):
    groups = q_BTHD.shape[2] // k_BTKD.shape[2]
    q, k, v = q_BTHD, k_BTKD, v_BTKV
    if q_rope is not None:
        q = torch.cat([q, q_rope], -1)
        k = torch.cat([k, k_rope[:, :, None].expand(-1, -1, k.shape[2], -1)], -1)
    # The fast paths want equal widths; zero channels change neither scores nor the values kept.
    width = max(q.shape[-1], v.shape[-1])
    q, k, v = (F.pad(x, (0, width - x.shape[-1])).transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups > 1)
    return o.transpose(1, 2)[..., : v_BTKV.shape[-1]]
