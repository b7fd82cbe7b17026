"""The choice of blocks for new queries in Triton: importances of every pooled block, then the top n of each row.

Only the first query of each group is scored; where that came in an earlier step or run, the latest choice is copied.
Importances are [B, T, K, N]; a row longer than one tile keeps n candidates of each tile for a last pass, as in
kernels/choice, whose ranking this is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.choice.triton_ranking import in_top, write_in_order
from zoo.kernels.decode.triton import _rows

_LOG2_E = tl.constexpr(1.4426950408889634)
_FORCED = tl.constexpr(0x7F800000)  # the bits of +inf: above every importance


@triton.jit
def _n_visible(position, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Compression blocks that end at or before a position."""
    return tl.maximum(position + 1 - BLOCK + STRIDE, 0) // STRIDE


@triton.jit
def _position(position, i_b, i_t, T):
    """That of token i_t of row i_b. Positions are consecutive, so the first of a row says all."""
    return tl.load(position + i_b * T).to(tl.int32) + i_t


@triton.jit
def _in_group(at, QUERY_GROUP: tl.constexpr):
    """How many queries of its group come before the one at a position, which may be negative."""
    return (at % QUERY_GROUP + QUERY_GROUP) % QUERY_GROUP


@triton.jit
def importance_kernel(
    q, qr, k, kr, lse, position, importance, scale_log2, T, N,
    q_b, q_t, q_h, qr_b, qr_t, qr_h, k_b, k_n, k_h, kr_b, kr_n,
    GROUPS: tl.constexpr, SHARED: tl.constexpr, PER: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, QUERY_GROUP: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr,
    RP: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sum over the heads of each group of exp(score - lse), for BN pooled blocks and the SHARED groups that read them.

    Rows are (group, head), the PER heads of a group padded to a power of two.
    """
    HEADS_KEPT: tl.constexpr = GROUPS // SHARED
    i_t, i_j = tl.program_id(1) // HEADS_KEPT, (tl.program_id(1) % HEADS_KEPT).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    at = _position(position, i_b, i_t, T)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_visible = tl.minimum(_n_visible(at, BLOCK, STRIDE), N)
    if _in_group(at, QUERY_GROUP) != 0 or tl.program_id(0) * BN >= n_visible:
        return
    o_r, o_d, o_e = tl.arange(0, ROWS), tl.arange(0, DP), tl.arange(0, RP)
    m_r, o_h = (o_r // PADDED < SHARED) & (o_r % PADDED < PER), i_j * SHARED * PER + o_r // PADDED * PER + o_r % PADDED
    m_n = o_n < n_visible
    o_n64, o_h64 = tl.where(m_n, o_n, 0).to(tl.int64), o_h.to(tl.int64)
    b_q = _rows(q + i_b * q_b + i_t.to(tl.int64) * q_t + o_h64 * q_h, m_r, o_d, D, DP)
    b_k = _rows(k + i_b * k_b + i_j * k_h + o_n64 * k_n, m_n, o_d, D, DP)
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
    if R > 0:
        b_qr = _rows(qr + i_b * qr_b + i_t.to(tl.int64) * qr_t + o_h64 * qr_h, m_r, o_e, R, RP)
        b_kr = _rows(kr + i_b * kr_b + o_n64 * kr_n, m_n, o_e, R, RP)
        b_s = tl.dot(b_kr, tl.trans(b_qr), b_s, input_precision=PRECISION)
    b_lse = tl.load(lse + (i_b * T + i_t) * (GROUPS * PER) + o_h, mask=m_r, other=float("inf")) * _LOG2_E
    b_p = tl.reshape(tl.exp2(b_s * scale_log2 - b_lse[None, :]), [BN, ROWS // PADDED, PADDED])
    o_g = tl.arange(0, ROWS // PADDED)
    o_row = (i_b * T + i_t) * GROUPS + i_j * SHARED + o_g
    p_out = importance + o_row[None, :] * N + o_n[:, None]
    tl.store(p_out, tl.sum(b_p, 2), mask=m_n[:, None] & (o_g < SHARED)[None, :])


@triton.jit
def rank_kernel(
    importance, position, previous, chosen, best_key, best_index, T, N, n_tiles,
    K: tl.constexpr, S: tl.constexpr, S_PADDED: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    SELECTION_BLOCK: tl.constexpr, N_INIT: tl.constexpr, N_LOCAL: tl.constexpr, QUERY_GROUP: tl.constexpr,
    ONE_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The choice of one query and group, or the candidates of one of its tiles."""
    i_t, i_k = tl.program_id(1) // K, tl.program_id(1) % K
    i_b = tl.program_id(2).to(tl.int64)
    at = _position(position, i_b, i_t, T)
    i_first = i_t - _in_group(at, QUERY_GROUP)
    o_s = tl.arange(0, S_PADDED)
    if i_first < 0:
        if tl.program_id(0) == 0 and ONE_TILE:
            b_previous = tl.load(previous + (i_b * K + i_k) * S + o_s, mask=o_s < S)
            tl.store(chosen + ((i_b * T + i_t) * K + i_k) * S + o_s, b_previous, mask=o_s < S)
        return
    at -= _in_group(at, QUERY_GROUP)
    n_visible = tl.minimum(_n_visible(at, BLOCK, STRIDE), N)
    o_m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    PIECES: tl.constexpr = SELECTION_BLOCK // STRIDE
    SPAN: tl.constexpr = BLOCK // STRIDE
    p_row = importance + ((i_b * T + i_first) * K + i_k) * N
    value = tl.zeros([TILE], tl.float32)
    for offset in tl.static_range(1 - SPAN, PIECES):  # p_slc of block m: its pieces, and those that reach into it
        o_n = o_m * PIECES + offset
        p = tl.load(p_row + o_n, mask=(o_n >= 0) & (o_n < n_visible), other=0.0)
        p = tl.where(p >= 0, p, 0.0)  # NaN counts as nothing
        value += (min(SPAN, PIECES - offset) - max(0, -offset)) * p
    value = tl.minimum(value, 3e38)
    own = tl.where(at >= 0, at // SELECTION_BLOCK, -1)
    candidate = (o_m <= own) & (o_m < tl.cdiv(N * STRIDE, SELECTION_BLOCK))
    forced = candidate & ((o_m < N_INIT) | (o_m > own - N_LOCAL))
    key = tl.where(candidate & (forced == 0), value.to(tl.int32, bitcast=True), -1)[None, :]
    forced, o_m = forced[None, :], o_m[None, :]
    taken = forced | in_top(key, S - tl.sum(forced.to(tl.int32), 1))
    m_row = tl.full([1], True, tl.int1)
    row = (i_b * T + i_t) * K + i_k
    if ONE_TILE:
        p_row = chosen + row * S + tl.zeros([1], tl.int64)
        write_in_order(p_row, o_m, taken, m_row, S, S_PADDED)
    else:
        o_best = (row * n_tiles + tl.program_id(0)) * S + tl.zeros([1], tl.int64)
        write_in_order(best_key + o_best, tl.where(forced, _FORCED, key), taken, m_row, S, S_PADDED)
        write_in_order(best_index + o_best, o_m, taken, m_row, S, S_PADDED)


@triton.jit
def merge_kernel(
    best_key, best_index, position, previous, chosen, T, n_best,
    K: tl.constexpr, S: tl.constexpr, S_PADDED: tl.constexpr, QUERY_GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The top n of the candidates that the tiles of a row have kept."""
    i_t, i_k = tl.program_id(0) // K, tl.program_id(0) % K
    i_b = tl.program_id(1).to(tl.int64)
    row = (i_b * T + i_t) * K + i_k
    if _in_group(_position(position, i_b, i_t, T), QUERY_GROUP) > i_t:
        o_s = tl.arange(0, S_PADDED)
        b_previous = tl.load(previous + (i_b * K + i_k) * S + o_s, mask=o_s < S)
        tl.store(chosen + row * S + o_s, b_previous, mask=o_s < S)
        return
    o_c = tl.arange(0, TILE)[None, :]
    key = tl.load(best_key + row * n_best + o_c, mask=o_c < n_best, other=-1)
    index = tl.load(best_index + row * n_best + o_c, mask=o_c < n_best, other=-1)
    p_row = chosen + row * S + tl.zeros([1], tl.int64)
    write_in_order(p_row, index, in_top(key, tl.full([1], S, tl.int32)), tl.full([1], True, tl.int1), S, S_PADDED)
