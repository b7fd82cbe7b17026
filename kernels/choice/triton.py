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
3. Chunks: the n chunks of the highest peaks. A block of any other chunk is less important than the best
   block of each of these n, so the n most important blocks lie in these chunks.
4. Ranks: the n of 8 n blocks that count most, in addition to the forced ones. Short rows skip step 3 and
   come here with all their chunks.

Steps 2 to 4 are in `triton_ranking.py`. The blocks of a row are read once or twice. Ranking all of them in one program
took three quarters of the time of the choice at 64K tokens (docs/log.md).
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.choice.triton_ranking import CHUNK, first_tokens, own_block


@triton.jit
def _n_visible(t, origin, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """How many compression blocks end at or before t."""
    past = t - origin - BLOCK + 1
    return tl.where((t >= 0) & (past >= 0), past // STRIDE + 1, 0)


@triton.jit
def _key_scores(b_q, b_qr, p_k, p_kr, i_n, N, k_n, kr_n, D: tl.constexpr, DP: tl.constexpr,
                R: tl.constexpr, RP: tl.constexpr, KEYS: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    """K Q^T of keys [i_n, i_n + KEYS). RAGGED: places past N read some other key and are masked later."""
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
    )  # a NaN, of a model that diverged, becomes 0: the order of its bits is not that of numbers
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
