"""The choice of blocks by the kernels: runs that fit the workspace, and launches."""

from __future__ import annotations

import math
from functools import cache, partial

import torch

from zoo.kernels.choice import triton as kernels
from zoo.kernels.choice import triton_ranking as ranking
from zoo.kernels.documents import Documents, n_groups
from zoo.kernels.launching import Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows, strides
from zoo.kernels.registration import opaque

WORKSPACE_BYTES = 1 << 28
MIN_RUN = 1024  # groups, so that a run fills the chip
SHORT = 64  # rows of up to so many chunks are ranked at once


@cache
def importance_tiles(G: int, row_bytes: int) -> list[dict]:
    """128 columns of (head, group), 64 where a row of a query is long; more heads than fit take several steps.

    The last entry is for GPUs with little shared memory.
    """
    heads = min(16 if row_bytes <= 256 else 8, next_power_of_2(G))
    groups = max(8, (128 if row_bytes <= 256 else 64) // heads)
    stages = 1 if heads < G else 2 if row_bytes > 128 else 3
    small = min(2, heads)
    return [
        dict(HEADS=heads, GROUPS=groups, KEYS=64, num_warps=4, num_stages=stages),
        dict(HEADS=small, GROUPS=16 // small, KEYS=16, num_warps=4, num_stages=1),
    ]


def choose_blocks(
    q, k, lse, *, q_rope=None, k_rope=None, compression_block, compression_stride, selection_block, n_selected,
    n_init=1, n_local=2, query_group=1, scale, documents: Documents | None = None,
):  # fmt: skip
    """As `zoo.kernels.choice.choose_blocks`."""
    first = start = None
    if documents is not None:
        first, start = documents.groups(query_group)[0].contiguous(), documents.start_BT.contiguous()
    count = n_groups(q.shape[1], query_group, documents)
    sizes = [compression_block, compression_stride, selection_block, n_selected, n_init, n_local, query_group]
    choose = _choose_op if torch.compiler.is_compiling() else _choose
    with torch.no_grad():
        return choose(q, k, lse, q_rope, k_rope, first, start, count, sizes, scale)


def _importance_grid(n_rows: int, n_groups: int, tile: Tile) -> tuple[int, ...]:
    return n_rows, cdiv(n_groups, tile["GROUPS"])


def _fixed_grid(n_groups: int, n_rows: int, tile: Tile) -> tuple[int, ...]:
    return n_groups, n_rows


def _choose(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    first: torch.Tensor | None, start: torch.Tensor | None, count: int, sizes: list[int], scale: float,
) -> torch.Tensor:  # fmt: skip
    q, k = dense_rows(q), dense_rows(k)
    q_rope, k_rope = dense_rows(q_rope), dense_rows(k_rope)
    block, stride, selection_block, S, n_init, n_local, query_group = sizes
    B, T, H, D = q.shape
    N, K = k.shape[1:3]
    R = q_rope.shape[-1] if q_rope is not None else 0
    G, pieces = H // K, selection_block // stride
    by_slot = pieces == 1 and block == stride  # a compression block is a selection block
    summed = first is None and pieces in (4, 8, 16) and block // stride <= pieces + 1
    shrink = pieces // 2 if summed else 1  # compression blocks for each number that is kept
    runs = _runs(count, B * K, query_group / stride, N + pieces, pieces, first is not None, WORKSPACE_BYTES * shrink)
    chosen = torch.empty(B, count, K, S, device=q.device, dtype=torch.int32)
    importance = q.new_empty(B * K * max(n * width // shrink for _, n, width in runs), dtype=torch.float32)
    tiles = importance_tiles(G, next_power_of_2(D) * q.element_size())
    widths = dict(G=G, D=D, DP=max(16, next_power_of_2(D)), R=R, RP=max(16, next_power_of_2(R)))
    shared = dict(K=K, BLOCK=block, STRIDE=stride, SELECTION_BLOCK=selection_block, QUERY_GROUP=query_group)
    shared["DOCUMENTS"] = first is not None
    ranks = dict(S=S, S_PADDED=next_power_of_2(S), BY_SLOT=by_slot)
    for g, n, width in runs:
        row = width // shrink
        last_token = T if first is not None else min(T, (g + n) * query_group)
        n_chunks = width // 8 if by_slot else cdiv(cdiv(last_token, selection_block), 8)
        seen_chunks = min(n_chunks, cdiv(last_token, 8 * selection_block))
        short = seen_chunks <= max(S, SHORT)
        peak = importance if short else torch.empty(B * K * n, n_chunks, device=q.device, dtype=torch.float32)
        chunks = None if short else torch.empty(B * K * n, S, device=q.device, dtype=torch.int32)
        arguments = (
            q, k, q if q_rope is None else q_rope, k_rope, lse, first, start, importance, peak,
            *q.stride()[:3], *k.stride()[:3], *strides(q_rope, 3), *strides(k_rope, 2),
            *lse.stride(), T, N, count, g, n, width, row,
            scale * math.log2(math.e),
        )  # fmt: skip
        launch(
            kernels._importance_kernel, partial(_importance_grid, B * K, n), arguments,
            {**shared, **widths, "PEAKS": by_slot and not short, "SUMMED": summed}, tiles, q.device,
        )  # fmt: skip
        where = T, count, g, n
        if not short:
            if not by_slot:
                _find_peaks(importance, peak, first, start, where, row, {**shared, "SUMMED": summed})
            _choose_chunks(peak, chunks, first, start, where, seen_chunks, shared, ranks)
        listed = next_power_of_2(seen_chunks if short else S)
        tile = dict(LISTED=not short, TILE=listed, num_warps=rank_warps(8 * listed))
        launch(
            ranking._rank_kernel, partial(_fixed_grid, n, B * K),
            (importance, chunks, first, start, chosen, *where, row, n_chunks),
            {**shared, **ranks, "N_INIT": n_init, "N_LOCAL": n_local, "SUMMED": summed}, [tile], q.device,
        )  # fmt: skip
    return chosen


@cache
def _runs(
    count: int, rows: int, slots_per_group: float, slots: int, pieces: int, documents: bool, workspace: int
) -> list[tuple[int, int, int]]:
    """(first group, groups, width of a row) of runs that fit the workspace; early rows are short, so runs are longer.

    rows: of each group.  slots: of the last group.  pieces: slots of a selection block, to whose end a row is written.
    Widths are whole tiles of keys.
    """
    limit, found, g = workspace // (4 * rows), [], 0
    while g < count:
        seen = slots if documents else min(slots, g * slots_per_group + 128)  # n more groups see slots_per_group n more
        growth = 0 if documents else slots_per_group
        n = int(limit / seen) if growth == 0 else int(((seen**2 + 4 * growth * limit) ** 0.5 - seen) / (2 * growth))
        n = max(MIN_RUN, n // 64 * 64)
        n = count - g if count - g <= n + n // 8 else n  # a little more memory is better than a run of a few groups
        width = slots if documents else min(slots, int((g + n) * slots_per_group) + max(64, pieces))
        found.append((g, n, cdiv(width, 64) * 64))
        g += n
    return found


def _find_peaks(importance, peak, first, start, where: tuple, row: int, shared: dict) -> None:
    n, n_chunks = where[3], peak.shape[1]
    arguments = importance, peak, first, start, *where, row, n_chunks
    tile = min(128, next_power_of_2(n_chunks))
    grid = n, peak.shape[0] // n, cdiv(n_chunks, tile)
    tiles = [dict(CHUNKS=tile, num_warps=max(1, tile // 32))]
    launch(ranking._peak_kernel, lambda tile: grid, arguments, shared, tiles, peak.device)


def _choose_chunks(peak, chunks, first, start, where: tuple, seen_chunks: int, shared: dict, ranks: dict) -> None:
    """seen_chunks: the most that a row of the run can see."""
    n, n_chunks = where[3], peak.shape[1]
    tile = next_power_of_2(seen_chunks)
    tiles = [dict(TILE=tile, num_warps=rank_warps(tile))]
    grid = n, peak.shape[0] // n
    arguments = peak, chunks, first, start, *where, n_chunks
    launch(ranking._chunks_kernel, lambda tile: grid, arguments, {**shared, **ranks}, tiles, peak.device)


def _choose_fake(q, k, lse, q_rope, k_rope, first, start, count, sizes, scale):
    return q.new_empty(q.shape[0], count, k.shape[2], sizes[3], dtype=torch.int32)


def rank_warps(tile: int) -> int:
    """Warps of a program that ranks `tile` keys: one for up to 1,024."""
    return min(16, max(1, tile // 1024))


_choose_op = opaque("choose_blocks", _choose, _choose_fake)
