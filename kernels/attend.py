"""What the reference functions share: softmax attention over gathered keys, in chunks that backward computes again."""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

# Scores (or gathered keys) of one chunk, in elements: 16 MB of float32. Smaller chunks, which fit the cache, are not
# slower.
CHUNK_ELEMENTS = 2**22


def wide(x: torch.Tensor) -> torch.Tensor:
    """The dtype in which references compute: float32, or float64 for float64 input."""
    return x if x.dtype == torch.float64 else x.float()


def join_rotary(q_BTHD, k_BTKD, q_rope_BTHR, k_rope_BTR):
    """Append the rotary parts, so that q . k + q_rope . k_rope becomes one product; k_rope is shared by all heads."""
    if q_rope_BTHR is None:
        return wide(q_BTHD), wide(k_BTKD)
    k_rope_BTKR = k_rope_BTR[:, :, None].expand(-1, -1, k_BTKD.shape[2], -1)
    return torch.cat([wide(q_BTHD), wide(q_rope_BTHR)], -1), torch.cat([wide(k_BTKD), wide(k_rope_BTKR)], -1)


def by_key_head(q_BTHD: torch.Tensor, n_kv_heads: int) -> torch.Tensor:
    """[B, T, H, D] -> [B, K, T, H/K, D]: the query heads next to the key head they share."""
    return q_BTHD.unflatten(2, (n_kv_heads, -1)).transpose(1, 2)


def attend(q, k, v, visible, scale: float, sinks=None, softcap=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of c queries, g heads each, over n keys; leading axes are batch axes and broadcast.

    q: [..., c, g, D].  k: [..., n, D].  v: [..., n, V].  visible: bool [..., c, n].  sinks: [..., c or 1, g], or None.
    Returns o [..., c, g, V] and the scores [..., c, g, n], with that of a sink as one more.  A query that sees nothing
    gets zeros, and a gradient of zeros.
    """
    rows = q.shape[-3:-1]
    scores = ((q * scale).flatten(-3, -2) @ k.mT).unflatten(-2, rows)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The lowest number, not -inf: a row that sees nothing then stays finite, in backward too.
    scores = scores.masked_fill(~visible.unsqueeze(-2), torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat((scores, wide(sinks)[..., None].to(scores).expand(*scores.shape[:-1], 1)), -1)
    weights = scores.softmax(-1)[..., : k.shape[-2]]
    o = (weights.flatten(-3, -2) @ v).unflatten(-2, rows)
    return o.masked_fill(~visible.any(-1)[..., None, None], 0.0), scores


def sinks_by_key_head(sinks_H: torch.Tensor | None, n_kv_heads: int, axes: int) -> torch.Tensor | None:
    """[H] -> [K, 1, ..., H/K], with `axes` axes of size 1, to broadcast with `by_key_head`.  None stays None."""
    return None if sinks_H is None else sinks_H.view(n_kv_heads, *[1] * axes, -1)


def prefix(needed: int, available: int) -> int:
    """Keys that a chunk reads if it needs the first `needed`: rounded up, so that chunks have at most 8 sizes.

    A buffer that is larger than the one before does not fit the memory which that one freed. If every chunk's buffers
    grow, full attention over 16K tokens (H=4, D=32) peaks at 2.2 GB on a CPU instead of 0.9 GB.
    """
    step = -(-available // 8)
    return min(available, -(-needed // step) * step)


def in_chunks(function: Callable, n_rows: int, elements_per_row: int, dim: int, multiple: int = 1):
    """Join function(lo, hi) over ranges of [0, n_rows) along `dim`; `function` returns a tensor or a tuple of them.

    With several chunks, each is computed again in backward, so that only one chunk's scores are ever held.
    """
    size = max(1, CHUNK_ELEMENTS // max(1, elements_per_row)) // multiple * multiple or multiple
    if size >= n_rows:
        return function(0, n_rows)
    kept = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    parts = [kept(lo, min(lo + size, n_rows)) for lo in range(0, n_rows, size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(each, dim) for each in zip(*parts, strict=True))
    return torch.cat(parts, dim)
