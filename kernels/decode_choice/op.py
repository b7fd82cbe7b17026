"""The choice of blocks for new queries by the kernels: runs that fit the workspace, and launches."""

from __future__ import annotations

import math
from functools import cache

import torch

from zoo.kernels.choice.op import WORKSPACE_BYTES
from zoo.kernels.decode.op import FEW, MAX_GRID, precision
from zoo.kernels.decode_choice import triton as kernels
from zoo.kernels.launching import INTERPRETED, Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows, strides
from zoo.kernels.registration import opaque

MAX_TILE = 8192  # selection blocks ranked at once


@cache
def _importance_tiles(dtype: torch.dtype, width: int) -> list[Tile]:
    """Slots of a tile of importances, for keys so wide; then less shared memory. As measured on an H200."""
    if INTERPRETED:
        return [dict(BN=16)]
    least = dict(BN=16, num_warps=4, num_stages=1)
    if dtype == torch.float32 or width > 256:
        return [dict(BN=32, num_warps=4, num_stages=2), least]
    return [dict(BN=64, num_warps=4, num_stages=stages) for stages in (3, 2)] + [least]


def cached_choose_blocks(
    q, k, lse, position, previous, *, compression_block, compression_stride, selection_block, n_init, n_local,
    query_group, q_rope, k_rope, scale,
) -> torch.Tensor:  # fmt: skip
    """As `zoo.kernels.cached_choose_blocks`."""
    sizes = [compression_block, compression_stride, selection_block, n_init, n_local, query_group]
    choose = _choose_op if torch.compiler.is_compiling() else _choose
    return choose(q, k, lse, position, previous, q_rope, k_rope, sizes, scale)


def _choose(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, position: torch.Tensor, previous: torch.Tensor,
    q_rope: torch.Tensor | None, k_rope: torch.Tensor | None, sizes: list[int], scale: float,
) -> torch.Tensor:  # fmt: skip
    """Runs of tokens whose importances fit the workspace; a group that goes on in the next run finds its choice there,
    as the latest."""
    q, k = dense_rows(q), dense_rows(k)
    q_rope, k_rope = dense_rows(q_rope), dense_rows(k_rope)
    run = _tokens_of_run(q.shape[0] * k.shape[1], previous.shape[1])
    if q.shape[1] <= run:
        return _choose_run(q, k, lse, position, previous, q_rope, k_rope, sizes, scale)
    parts = []
    for t in range(0, q.shape[1], run):
        tensors = (x if x is None else x[:, t : t + run] for x in (q, lse, position, q_rope))
        q_run, lse_run, position_run, rope_run = tensors
        parts.append(_choose_run(q_run, k, lse_run, position_run, previous, rope_run, k_rope, sizes, scale))
        previous = parts[-1][:, -1]
    return torch.cat(parts, 1)


def _tokens_of_run(slots: int, groups: int) -> int:
    """slots: of all rows, of which each token has an importance for each group."""
    return max(FEW, min(WORKSPACE_BYTES // (4 * slots * groups), MAX_GRID // groups))


def _choose_run(q, k, lse, position, previous, q_rope, k_rope, sizes: list[int], scale: float) -> torch.Tensor:
    lse, position, previous = lse.contiguous(), position.contiguous(), previous.contiguous()
    block, stride, _, _, _, query_group = sizes
    (B, T, H, D), (N, J), (K, S) = q.shape, k.shape[1:3], previous.shape[1:]
    R = 0 if q_rope is None else q_rope.shape[-1]
    importance = q.new_empty(B, T, K, N, dtype=torch.float32)
    strides_qr, strides_kr = strides(q_rope, 3), strides(k_rope, 2)
    tensors = q, q_rope if R else q, k, k_rope if R else k, lse, position, importance
    numbers = scale * math.log2(math.e), T, N, *q.stride()[:3], *strides_qr, *k.stride()[:3], *strides_kr
    DP, RP = (max(16, next_power_of_2(width)) for width in (D, R))
    padded = next_power_of_2(H // K)
    rows = max(16, next_power_of_2(K // J) * padded)
    widths = dict(D=D, R=R, DP=DP, RP=RP, ROWS=rows, PRECISION=precision(q.dtype))
    heads = dict(GROUPS=K, SHARED=K // J, PER=H // K, PADDED=padded, BLOCK=block, STRIDE=stride)
    heads["QUERY_GROUP"] = query_group
    launch(
        kernels.importance_kernel, lambda tile: (cdiv(N, tile["BN"]), T * J, B), (*tensors, *numbers),
        {**heads, **widths}, _importance_tiles(q.dtype, DP), q.device,
    )  # fmt: skip
    chosen = torch.empty(B, T, K, S, device=q.device, dtype=torch.int32)
    _rank(importance, position, previous, chosen, sizes)
    return chosen


def _choose_fake(q, k, lse, position, previous, q_rope, k_rope, sizes, scale):
    return previous.new_empty(*q.shape[:2], *previous.shape[1:])


def _rank(importance, position, previous, chosen, sizes: list[int]) -> None:
    block, stride, selection_block, n_init, n_local, query_group = sizes
    (B, T, K, S), N, device = chosen.shape, importance.shape[3], chosen.device
    n_blocks = cdiv(N * stride, selection_block)
    tile = min(MAX_TILE, max(16, next_power_of_2(n_blocks)))
    n_tiles, padded = cdiv(n_blocks, tile), next_power_of_2(S)
    best = torch.empty(2, chosen.numel() * n_tiles if n_tiles > 1 else 0, device=device, dtype=torch.int32)
    constants = dict(
        K=K, S=S, S_PADDED=padded, BLOCK=block, STRIDE=stride, SELECTION_BLOCK=selection_block, N_INIT=n_init,
        N_LOCAL=n_local, QUERY_GROUP=query_group, ONE_TILE=n_tiles == 1,
    )  # fmt: skip
    arguments: tuple = importance, position, previous, chosen, best[0], best[1], T, N, n_tiles
    launch(kernels.rank_kernel, lambda tile: (n_tiles, T * K, B), arguments, constants, _rank_tiles(tile), device)
    if n_tiles > 1:
        arguments = best[0], best[1], position, previous, chosen, T, n_tiles * S
        constants = dict(K=K, S=S, S_PADDED=padded, QUERY_GROUP=query_group)
        tiles = _rank_tiles(next_power_of_2(n_tiles * S))
        launch(kernels.merge_kernel, lambda tile: (T * K, B), arguments, constants, tiles, device)


@cache
def _rank_tiles(tile: int) -> list[Tile]:
    return [dict(TILE=tile, num_warps=max(1, min(16, tile // 512)))]


_choose_op = opaque("cached_choose_blocks", _choose, _choose_fake)
