"""The choice of blocks in Triton: importances of a run of query groups, then the top n of each row, in two steps.

1. Importance: scores of pooled keys against the first query of each group, turned around: S^T = K Q^T with one column
   per (head, group), heads outermost, so that the sum over the heads of a group stays inside a thread.
   They go to a workspace [B, K, groups of the run, width] of bounded size; runs follow one another, so memory grows
   with N and not with T x N. A row is written at least as far as the query's own block: zeros for what is not seen.
   Where PIECES = 4, 8 or 16 compression blocks begin in a selection block and reach no further than the next one, and
   no documents move its bounds, a row holds two sums instead of them, which is less to write and to read: of the pieces
   of each selection block, as far as they lie in it, and of those of its last pieces that reach into the next one.
   `width` counts compression blocks, `row` the numbers that are kept of them.
2. Peaks: the highest importance of every CHUNK = 8 blocks of a row. Where a compression block is a selection block the
   first kernel has it at hand; else a kernel sums the compression blocks that overlap each selection block.
3. Chunks: the n chunks of the highest peaks. Every block of another chunk has n before it, one of each of these, so
   the n most important blocks lie in them.
4. Ranks: the n of 8 n blocks that count most, beside the forced ones. Short rows come here at once, with all chunks.

Steps 2 to 4 are in `ranking_kernel.py`. So the blocks of a row are touched once or twice; ranking all of them in one
program took three quarters of the time of A at 64K (docs/log.md).
"""

from __future__ import annotations

import math
from functools import cache, partial

import torch
import triton
import triton.language as tl

from zoo.kernels.choice import ranking_kernel
from zoo.kernels.choice.ranking_kernel import CHUNK, first_tokens, own_block
from zoo.kernels.documents import Documents, n_groups
from zoo.kernels.launching import Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows, strides
from zoo.kernels.registration import opaque

WORKSPACE_BYTES = 1 << 28
MIN_RUN = 1024  # groups, so that a run fills the chip
SHORT = 64  # rows of up to so many chunks are ranked at once


@triton.jit
def _n_visible(t, origin, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """How many compression blocks end at or before t."""
    past = t - origin - BLOCK + 1
    return tl.where((t >= 0) & (past >= 0), past // STRIDE + 1, 0)


@triton.jit
def _key_scores(b_q, b_qr, p_k, p_kr, i_n, N, k_n, kr_n, D: tl.constexpr, DP: tl.constexpr,
                R: tl.constexpr, RP: tl.constexpr, KEYS: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    """K Q^T of keys [i_n, i_n + KEYS). RAGGED: those past N are some other key, and are masked later."""
    o_n = tl.arange(0, KEYS)
    if RAGGED:
        o_n = tl.minimum(o_n, N - 1 - i_n)
    o_n, i_n64 = o_n[:, None], tl.full([1, 1], 0, tl.int64) + i_n
    o_d, o_e = tl.arange(0, DP)[None, :], tl.arange(0, RP)[None, :]
    b_k = tl.load(p_k + i_n64 * k_n + (o_n * k_n + o_d), mask=o_d < D, other=0.0)
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
    if R > 0:
        b_kr = tl.load(p_kr + i_n64 * kr_n + (o_n * kr_n + o_e), mask=o_e < R, other=0.0)
        b_s = tl.dot(b_kr, tl.trans(b_qr), b_s, input_precision="ieee")
    return b_s


@triton.jit
def _head_sum(b_s, b_lse, scale_log2, KEYS: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """What the heads attend to each key, together: [KEYS, GROUPS]."""
    b_p = tl.exp2(b_s * scale_log2 - b_lse[None, :])
    return tl.sum(tl.reshape(b_p, [KEYS, HEADS, GROUPS]), 1)


@triton.jit
def _store_importances(
    p_row, p_peak, total, i_n, m_g, slot0, seen_end, row, KEYS: tl.constexpr, GROUPS: tl.constexpr,
    PEAKS: tl.constexpr, SUMMED: tl.constexpr, PIECES: tl.constexpr, SPAN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write a tile, or its sums, and its peaks; MASKED: some group does not see all of it; zeros there."""
    o_n = i_n + tl.arange(0, KEYS)
    total = tl.where(
        total >= 0, total, 0.0
    )  # NaN, of a model that diverged, counts as nothing: its bits would break the order
    if MASKED:
        total = tl.where((o_n[:, None] >= slot0[None, :]) & (o_n[:, None] < seen_end[None, :]), total, 0.0)
    if SUMMED:
        o_m, o_p = i_n // PIECES + tl.arange(0, KEYS // PIECES), tl.arange(0, PIECES)[None, :]
        o_w = tl.arange(0, 2)[:, None]  # the two sums
        weight = tl.where(o_w == 0, tl.minimum(PIECES - o_p, SPAN), tl.maximum(o_p + SPAN - PIECES, 0))
        total = tl.minimum(total, 1e30)  # of a model that diverged: infinity times a weight of 0 would be NaN
        b_piece = tl.reshape(total, [1, KEYS // PIECES, PIECES, GROUPS]) * weight.to(tl.float32)[:, None, :, None]
        p_sum = p_row[:, None, :] + (o_w * (row // 2) + o_m[None, :])[:, :, None]
        tl.store(p_sum, tl.sum(b_piece, 2), mask=m_g[None, None, :])
    else:
        tl.store(p_row + o_n[:, None], total, mask=m_g[None, :])
    if PEAKS:
        b_peak = tl.max(tl.reshape(total, [KEYS // CHUNK, CHUNK, GROUPS]), 1)
        o_p = tl.arange(0, KEYS // CHUNK) + i_n // CHUNK
        tl.store(p_peak + o_p[:, None], b_peak, mask=m_g[None, :])


@triton.jit
def _importance_kernel(
    q, k, q_rope, k_rope, lse, first, start, importance, peak,
    q_b, q_t, q_h, k_b, k_n, k_h, qr_b, qr_t, qr_h, kr_b, kr_n, lse_b, lse_t, lse_h,
    T, N, n_groups, g_begin, g_count, width, row, scale_log2,
    K: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECTION_BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, PEAKS: tl.constexpr,
    SUMMED: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Importances of GROUPS query groups, KEYS at a time."""
    i_g = (tl.num_programs(1) - 1 - tl.program_id(1)) * GROUPS  # the longest rows first, of all heads
    i_b, i_k = (tl.program_id(0) // K).to(tl.int64), (tl.program_id(0) % K).to(tl.int64)
    PIECES: tl.constexpr = SELECTION_BLOCK // STRIDE
    SPAN: tl.constexpr = BLOCK // STRIDE
    o_g = i_g + tl.arange(0, GROUPS)
    t, origin = first_tokens(first, start, i_b, g_begin + o_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    m_g = (o_g < g_count) & (t >= 0)
    slot0 = origin // STRIDE
    seen_end = slot0 + _n_visible(t, origin, BLOCK, STRIDE)
    end = slot0 + (own_block(t, origin, SELECTION_BLOCK) + 1) * PIECES
    low, high = tl.min(tl.where(m_g, slot0, width), 0) // KEYS * KEYS, tl.max(tl.where(m_g, end, 0), 0)
    all_see = low if DOCUMENTS else tl.min(tl.where(m_g, seen_end, width), 0) // KEYS * KEYS

    o_c = tl.arange(0, HEADS * GROUPS)
    o_h = (o_c // GROUPS).to(tl.int64)
    t_c, _ = first_tokens(first, start, i_b, g_begin + i_g + o_c % GROUPS, T, n_groups, QUERY_GROUP, DOCUMENTS)
    t_c = tl.maximum(t_c, 0).to(tl.int64)
    o_d, o_e = tl.arange(0, DP), tl.arange(0, RP)
    p_q = q + i_b * q_b + t_c[:, None] * q_t + i_k * G * q_h + o_d[None, :]
    p_qr = q_rope + i_b * qr_b + t_c[:, None] * qr_t + i_k * G * qr_h + o_e[None, :]
    p_lse = lse + i_b * lse_b + t_c * lse_t + i_k * G * lse_h
    p_k, p_kr = k + i_b * k_b + i_k * k_h, k_rope + i_b * kr_b if R > 0 else k
    p_row = importance + ((i_b * K + i_k) * g_count + o_g).to(tl.int64)[None, :] * row
    p_peak = peak + ((i_b * K + i_k) * g_count + o_g).to(tl.int64)[None, :] * (width // CHUNK)
    if G <= HEADS:
        b_q = tl.load(p_q + o_h[:, None] * q_h, mask=(o_h[:, None] < G) & (o_d[None, :] < D), other=0.0)
        b_lse = tl.load(p_lse + o_h * lse_h, mask=o_h < G, other=float("inf")) * 1.4426950408889634
        b_qr = b_q
        if R > 0:
            b_qr = tl.load(p_qr + o_h[:, None] * qr_h, mask=(o_h[:, None] < G) & (o_e[None, :] < R), other=0.0)
        for i_n in range(low, all_see, KEYS):
            b_s = _key_scores(b_q, b_qr, p_k, p_kr, i_n, N, k_n, kr_n, D, DP, R, RP, KEYS, False)
            total = _head_sum(b_s, b_lse, scale_log2, KEYS, HEADS, GROUPS)
            _store_importances(
                p_row, p_peak, total, i_n, m_g, slot0, seen_end, row, KEYS, GROUPS, PEAKS, SUMMED, PIECES, SPAN, False
            )  # fmt: skip
        for i_n in range(all_see, high, KEYS):
            b_s = _key_scores(b_q, b_qr, p_k, p_kr, i_n, N, k_n, kr_n, D, DP, R, RP, KEYS, True)
            total = _head_sum(b_s, b_lse, scale_log2, KEYS, HEADS, GROUPS)
            _store_importances(
                p_row, p_peak, total, i_n, m_g, slot0, seen_end, row, KEYS, GROUPS, PEAKS, SUMMED, PIECES, SPAN, True
            )  # fmt: skip
    else:
        for i_n in range(low, high, KEYS):
            total = tl.zeros([KEYS, GROUPS], tl.float32)
            for h0 in tl.static_range(0, G, HEADS):
                m_h = h0 + o_h < G
                b_q = tl.load(p_q + (h0 + o_h)[:, None] * q_h, mask=m_h[:, None] & (o_d[None, :] < D), other=0.0)
                b_lse = tl.load(p_lse + (h0 + o_h) * lse_h, mask=m_h, other=float("inf")) * 1.4426950408889634
                b_qr = b_q
                if R > 0:
                    b_qr = tl.load(p_qr + (h0 + o_h)[:, None] * qr_h, mask=m_h[:, None] & (o_e[None, :] < R), other=0.0)
                b_s = _key_scores(b_q, b_qr, p_k, p_kr, i_n, N, k_n, kr_n, D, DP, R, RP, KEYS, True)
                total += _head_sum(b_s, b_lse, scale_log2, KEYS, HEADS, GROUPS)
            _store_importances(
                p_row, p_peak, total, i_n, m_g, slot0, seen_end, row, KEYS, GROUPS, PEAKS, SUMMED, PIECES, SPAN, True
            )  # fmt: skip


@cache
def importance_tiles(G: int, row_bytes: int) -> list[dict]:
    """128 columns of (head, group), 64 where a row of a query is long; more heads than fit take several steps.

    Then one for small shared memory.
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
    q, k, lse, *, q_rope=None, k_rope_BNR=None, compression_block, compression_stride, selection_block, n_selected,
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
        return choose(q, k, lse, q_rope, k_rope_BNR, first, start, count, sizes, scale)


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
            _importance_kernel, partial(_importance_grid, B * K, n), arguments,
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
            ranking_kernel._rank_kernel, partial(_fixed_grid, n, B * K),
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
        n = count - g if count - g <= n + n // 8 else n  # rather a little more memory than a run of a few groups
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
    launch(ranking_kernel._peak_kernel, lambda tile: grid, arguments, shared, tiles, peak.device)


def _choose_chunks(peak, chunks, first, start, where: tuple, seen_chunks: int, shared: dict, ranks: dict) -> None:
    """seen_chunks: the most that a row of the run can see."""
    n, n_chunks = where[3], peak.shape[1]
    tile = next_power_of_2(seen_chunks)
    tiles = [dict(TILE=tile, num_warps=rank_warps(tile))]
    grid = n, peak.shape[0] // n
    arguments = peak, chunks, first, start, *where, n_chunks
    launch(ranking_kernel._chunks_kernel, lambda tile: grid, arguments, {**shared, **ranks}, tiles, peak.device)


def _choose_fake(q, k, lse, q_rope, k_rope, first, start, count, sizes, scale):
    return q.new_empty(q.shape[0], count, k.shape[2], sizes[3], dtype=torch.int32)


def rank_warps(tile: int) -> int:
    """Warps of a program that ranks `tile` keys: one for up to 1,024."""
    return min(16, max(1, tile // 1024))


_choose_op = opaque("choose_blocks", _choose, _choose_fake)
