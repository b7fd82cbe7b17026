"""Sliding-window attention by tiles: c queries see at most c + w - 1 keys, so no T x T scores are formed."""

import torch
import torch.nn.functional as F

from zoo.kernels.attend import attend, by_key_head, in_chunks, join_rotary, sinks_by_key_head, wide
from zoo.kernels.documents import starts

# Queries of a tile. Fewer waste less on keys outside the window (c + w - 1 scores a query), more make larger products.
TILE = 32


def window_attention(q_BTHD, k_BTKD, v_BTKV, *, window, q_rope, k_rope, scale, documents, sinks, softcap):
    """`zoo.kernels.window_attention`: o_BTHV."""
    batch, seq_len, n_heads, _ = q_BTHD.shape
    before = min(window, seq_len) - 1  # keys of a query before its own
    c = min(TILE, seq_len)
    n_tiles = -(-seq_len // c)
    tail = n_tiles * c - seq_len
    q, k = join_rotary(q_BTHD, k_BTKD, q_rope, k_rope)
    q_BKNcgD = F.pad(by_key_head(q, k.shape[2]), (0, 0, 0, 0, 0, tail)).unflatten(2, (n_tiles, c))
    k_BKTD, v_BKTV = (F.pad(x.transpose(1, 2), (0, 0, before, tail)) for x in (k, wide(v_BTKV)))
    start_BNc = F.pad(starts(documents, batch, seq_len, q.device), (0, tail)).unflatten(1, (n_tiles, c))
    query_Nc1 = torch.arange(n_tiles * c, device=q.device).view(n_tiles, c, 1)
    key_N1n = torch.arange(n_tiles, device=q.device).view(-1, 1, 1) * c + torch.arange(-before, c, device=q.device)
    options = {"sinks": sinks_by_key_head(sinks, k.shape[2], 2), "softcap": softcap}
    near_Ncn = (key_N1n <= query_Nc1) & (key_N1n >= query_Nc1 - before)

    def tiles(x_BKTD: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
        return x_BKTD[:, :, lo * c : hi * c + before].unfold(2, c + before, c).mT

    def chunk(lo: int, hi: int) -> torch.Tensor:
        visible_B1Ncn = (near_Ncn[lo:hi] & (key_N1n[lo:hi] >= start_BNc[:, lo:hi, :, None])).unsqueeze(1)
        keys = tiles(k_BKTD, lo, hi), tiles(v_BKTV, lo, hi)
        return attend(q_BKNcgD[:, :, lo:hi], *keys, visible_B1Ncn, scale, **options)[0]

    o_BKNcgV = in_chunks(chunk, n_tiles, batch * n_heads * c * (c + before), dim=2)
    return o_BKNcgV.flatten(2, 3)[:, :, :seq_len].transpose(1, 2).flatten(2, 3).to(q_BTHD.dtype)
