"""Launches of the kernels that run by query group: forward, dq and delta."""

from __future__ import annotations

import math
from functools import cache

import torch

from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.selection import triton_by_query as kernels


def padded(width: int) -> int:
    """The tile width that holds `width`: a power of two, at least the 16 a matrix instruction takes."""
    return max(16, next_power_of_2(width))


def constants(q, k, v, q_rope, chosen, selection_block: int, query_group: int, documents: bool) -> dict:
    """The constants every kernel of the operation is compiled for. Not to be changed."""
    R = q_rope.shape[-1] if q_rope is not None else 0
    widths = q.shape[3], R, v.shape[3], chosen.shape[3]
    return _constants(k.shape[2], q.shape[2], *widths, selection_block, query_group, documents)


@cache
def _constants(K, H, D, R, V, S, selection_block, query_group, documents) -> dict:
    return dict(
        K=K, G=H // K, D=D, DP=padded(D), R=R, RP=padded(R), V=V, VP=padded(V),
        S=S, SP=next_power_of_2(S), BLOCK=selection_block, QUERY_GROUP=query_group, DOCUMENTS=documents,
    )  # fmt: skip


def strides(x: torch.Tensor | None, axes: int) -> tuple[int, ...]:
    """Strides of the first `axes` axes, zeros for a tensor that is absent."""
    return tuple(x.stride()[:axes]) if x is not None else (0,) * axes


def statistics_shape(q: torch.Tensor, k: torch.Tensor) -> tuple[int, ...]:
    """Of log-sum-exp and delta: [B, K, T, G], so that the rows of a query group lie together."""
    return q.shape[0], k.shape[2], q.shape[1], q.shape[2] // k.shape[2]


def query_tiles(size: dict, itemsize: int, backward: bool) -> list[dict]:
    """Tile and launch options of the kernels that run by query group, best first, then one for small shared memory."""
    rows, slots = size["QUERY_GROUP"] * size["G"], size["S"] * size["BLOCK"]
    widths = size["DP"], size["VP"], size["RP"] if size["R"] else 0
    return _query_tiles(padded(rows), widths, size["BLOCK"], padded(slots), itemsize, backward)


@cache
def _query_tiles(
    rows: int, widths: tuple[int, int, int], block: int, slots: int, itemsize: int, backward: bool
) -> list[dict]:
    """Measured on an H200: up to 16 rows one warp wins, for where a program takes little shared memory and few
    registers more of them run and hide each other's waiting; 64 rows take the wide matrix instruction and its four
    warps.

    widths: of keys, values and the rotary part, 0 without one.  block: tokens of a chosen block.
    """
    rows, widest, rotary = min(64, rows), max(widths[:2]), widths[2]
    keep = dict(KEEP=rows == 16 and (sum(widths) <= 160 if widest <= 64 else not rotary)) if backward else {}
    small = dict(ROWS=16, KEYS=16, num_warps=4, num_stages=1)
    if itemsize == 4 or widest > 128:  # float32 has no matrix instruction of full precision: correct, not fast
        small |= dict(KEEP=False) if backward else {}
        return [small if itemsize == 4 else dict(small, ROWS=min(rows, 32)), small]
    wide = rows == 64 or (rows == 32 and backward and widest > 64)
    keys = min(64 if wide else 32, slots)
    if rows == 16 and block == 16:  # a tile within one block reads one index
        keys = 16
    registers = dict(maxnreg=168) if backward and rows == 16 and widest <= 64 else {}
    stages = 3 if rows == 16 or (rows == 64 and not backward) else 2
    warps = rows // 16 if wide else 1
    best = dict(ROWS=rows, KEYS=keys, num_warps=warps, num_stages=stages, **keep, **registers)
    return [best, small | keep]  # without KEEP it would need more shared memory


def _grid(n_groups: int, batch: int, size: dict):
    rows = size["QUERY_GROUP"] * size["G"]
    return lambda tile: (n_groups * cdiv(rows, tile["ROWS"]), batch * size["K"])


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    chosen: torch.Tensor, first: torch.Tensor | None, start: torch.Tensor | None, sizes: list[int], scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """o and the log-sum-exp, in base 2."""
    B, T, H, _ = q.shape
    selection_block, query_group, _ = sizes
    size = constants(q, k, v, q_rope, chosen, selection_block, query_group, first is not None)
    o = torch.empty(B, T, H, v.shape[-1], device=q.device, dtype=v.dtype)
    lse = torch.empty(statistics_shape(q, k), device=q.device, dtype=torch.float32)
    n_groups = chosen.shape[1]
    arguments = (
        q, k, v, q_rope, k_rope, chosen, first, start, o, lse,
        *strides(q, 3), *strides(k, 3), *strides(v, 3), *strides(q_rope, 3), *strides(k_rope, 2),
        T, n_groups, scale * math.log2(math.e),
    )  # fmt: skip
    tiles = query_tiles(size, q.element_size(), backward=False)
    launch(kernels._selection_fwd_kernel, _grid(n_groups, B, size), arguments, size, tiles, q.device)
    return o, lse


def backward(q, k, v, q_rope, k_rope, chosen, first, start, o, lse, do, selection_block, query_group, scale):
    """dq, dq_rope (None without rotary part) and delta."""
    B, T, H, D = q.shape
    size = constants(q, k, v, q_rope, chosen, selection_block, query_group, first is not None)
    dq = torch.empty(B, T, H, D, device=q.device, dtype=q.dtype)
    dq_rope = None if q_rope is None else torch.empty_like(q_rope, memory_format=torch.contiguous_format)
    delta = torch.empty_like(lse)
    n_groups = chosen.shape[1]
    arguments = (
        q, k, v, q_rope, k_rope, chosen, first, start, o, lse, do, dq, dq_rope, delta,
        *strides(q, 3), *strides(k, 3), *strides(v, 3), *strides(q_rope, 3), *strides(k_rope, 2), *strides(do, 3),
        T, n_groups, scale, scale * math.log2(math.e),
    )  # fmt: skip
    tiles = query_tiles(size, q.element_size(), backward=True)
    launch(kernels._selection_bwd_dq_kernel, _grid(n_groups, B, size), arguments, size, tiles, q.device)
    return dq, dq_rope, delta
