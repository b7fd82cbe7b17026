"""Attention of new queries to a cache in Triton, split over the cache so that one row fills the chip.

Kernel 1: program (split and query tile, row of the batch) attends to its share of the slots that its queries see, from
the first to the last, and writes a float32 partial with its log-sum-exp. Kernel 2 joins the partials of a query in
order, so that two runs give the same bits. The number of splits follows from the size of the cache, because only the
device knows how many slots are filled; each split takes an equal share of the filled ones. Where the queries alone fill
the chip there is one split, which writes the result.

A tile has one (query, head) a row: TOKENS queries of the PER heads that share a head of the cache, PADDED to a power of
two. With SELECT the slots are the tokens of chosen blocks. A tile of several queries then begins where positions are
multiples of TOKENS, as groups of queries with one choice do: a tile whose queries share a choice reads its slots once,
any other tile once for each of its queries. With SAME_KV the values are the keys (latents), which are read once. With
SOFTCAP scores are capped; with SINKS the sums of the first split begin with the head's sink, a key of that score and
value 0.

Layouts: q [B, T, H, D], q_rope [B, T, H, R], k [B, N, J, D], k_rope [B, N, R], v [B, N, J, V]: any strides, but 1 in
the last axis; partials [splits, B, T, H, V] and [splits, B, T, H]. DP, RP, VP are widths padded to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.softcap_triton import tanh

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _rows(p, m_row, o_c, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows at the pointers p [ROWS], zeros where masked and from WIDTH up to PADDED."""
    if PADDED == WIDTH:
        return tl.load(p[:, None] + o_c[None, :], mask=m_row[:, None], other=0.0)
    return tl.load(p[:, None] + o_c[None, :], mask=m_row[:, None] & (o_c < WIDTH)[None, :], other=0.0)


@triton.jit
def _slots(n0, chosen, position, S, BLOCK: tl.constexpr, SELECT: tl.constexpr, BN: tl.constexpr):
    """Slots n0 .. n0 + BN - 1, or the tokens in those places of the chosen blocks; -1: none."""
    o_n = n0 + tl.arange(0, BN)
    if SELECT:
        block = tl.load(chosen + o_n // BLOCK, mask=o_n < S * BLOCK, other=-1)
        token = block * BLOCK + o_n % BLOCK
        return tl.where((block >= 0) & (block <= position // BLOCK) & (token <= position), token, -1)
    return o_n


@triton.jit
def _share_a_choice(chosen, o_t, m_t, i_first, S, GROUPS: tl.constexpr, PLACES: tl.constexpr):
    """Whether the queries o_t, where m_t, have the choice of query i_first; `chosen` points to that of query 0."""
    o_s = tl.arange(0, PLACES)
    m_s = m_t[:, None] & (o_s < S)[None, :]
    b_own = tl.load(chosen + (o_t.to(tl.int64) * GROUPS * S)[:, None] + o_s[None, :], mask=m_s, other=-1)
    b_first = tl.load(chosen + i_first.to(tl.int64) * GROUPS * S + o_s, mask=o_s < S, other=-1)
    return tl.sum((m_s & (b_own != b_first[None, :])).to(tl.int32)) == 0


@triton.jit
def split_kernel(
    q, qr, k, kr, v, first, end, chosen, sinks, part_o, part_lse, inner, scale_log2, B, T, N, H, S, n_splits,
    q_b, q_t, q_h, qr_b, qr_t, qr_h, k_b, k_n, k_h, kr_b, kr_n, v_b, v_n, v_h,
    GROUPS: tl.constexpr, SHARED: tl.constexpr, PER: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr, SELECT: tl.constexpr, SAME_KV: tl.constexpr, D: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
    LONG: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """GROUPS of PER query heads; SHARED of them read the same head of the cache."""
    SHARE: tl.constexpr = SELECT and TOKENS > 1
    i_split, i_tile, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if LONG:  # a grid's second axis ends at 65,535
        i_split, i_tile = i_split % n_splits, i_split // n_splits
    i_group, t0 = i_tile % GROUPS, i_tile // GROUPS * TOKENS
    if SHARE:
        t0 -= ((tl.load(end + i_b * T) % TOKENS + TOKENS) % TOKENS).to(tl.int32)
        if t0 >= T:
            return
    o_r = tl.arange(0, ROWS)
    o_t, o_h = t0 + o_r // PADDED, i_group * PER + o_r % PADDED
    m_r = (o_r // PADDED < TOKENS) & (o_t < T) & (o_r % PADDED < PER)
    if SHARE:
        m_r &= o_t >= 0
    o_t = tl.where(m_r, o_t, 0)
    hi = tl.minimum(tl.maximum(tl.load(end + i_b * T + o_t, mask=m_r, other=0), -1), N).to(tl.int32)
    p_chosen, together, n_pass = chosen, True, 1
    if SELECT:
        hi += 1  # the positions of the queries
    position = tl.max(hi, 0) - 1
    if SELECT:
        lo, begin, stop = hi * 0, 0, S * BLOCK
        if SHARE:
            p_chosen = chosen + (i_b * T * GROUPS + i_group) * S
            o_q, i_first = t0 + tl.arange(0, TOKENS), tl.maximum(t0, 0)
            together = _share_a_choice(p_chosen, o_q, (o_q >= 0) & (o_q < T), i_first, S, GROUPS, PLACES)
            n_pass = tl.cdiv(stop, BN)  # tiles of a choice, 1 or more
            stop = n_pass * tl.where(together, 1, TOKENS) * BN
        else:
            p_chosen = chosen + ((i_b * T + t0) * GROUPS + i_group) * S
    else:
        lo = tl.minimum(tl.maximum(tl.load(first + i_b * T + o_t, mask=m_r, other=N), 0), N).to(tl.int32)
        begin, stop = tl.min(lo, 0) // BN, position + 1
    n_tiles = tl.maximum(tl.cdiv(stop, BN) - begin, 0)
    each = tl.cdiv(n_tiles, n_splits)
    begin += i_split * each
    stop = tl.minimum(begin + each, tl.cdiv(stop, BN))

    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    o_h64 = o_h.to(tl.int64)  # absorbed queries are laid out by head: their stride is that of all tokens
    b_q = _rows(q + i_b * q_b + o_t.to(tl.int64) * q_t + o_h64 * q_h, m_r, o_d, D, DP)
    b_qr = b_q
    if R > 0:
        b_qr = _rows(qr + i_b * qr_b + o_t.to(tl.int64) * qr_t + o_h64 * qr_h, m_r, o_e, R, RP)
    i_j = (i_group // SHARED).to(tl.int64)
    p_k, p_v, p_kr = k + i_b * k_b + i_j * k_h, v + i_b * v_b + i_j * v_h, kr + i_b * kr_b
    b_max = tl.full([ROWS], -float("inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, VP], tl.float32)
    if SINKS:
        is_first = i_split == 0
        b_max = tl.where(is_first, tl.load(sinks + o_h, mask=m_r, other=0.0) * _LOG2_E, b_max)
        b_sum = tl.where(is_first, 1.0, b_sum)
    for i in range(begin, stop):
        n0, p_places = i * BN, p_chosen
        if SHARE:
            i_q = i // n_pass  # of the tile's queries
            n0 -= i_q * n_pass * BN
            p_places += tl.minimum(tl.maximum(t0 + i_q, i_first), T - 1).to(tl.int64) * GROUPS * S
        o_n = _slots(n0, p_places, position, S, BLOCK, SELECT, BN)
        m_n = (o_n >= 0) & (o_n < N)
        o_n64 = tl.where(m_n, o_n, 0).to(tl.int64)
        b_k = _rows(p_k + o_n64 * k_n, m_n, o_d, D, DP)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        if R > 0:
            b_kr = _rows(p_kr + o_n64 * kr_n, m_n, o_e, R, RP)
            b_s = tl.dot(b_qr, tl.trans(b_kr), b_s, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * inner)
        visible = m_n[None, :] & (o_n[None, :] >= lo[:, None]) & (o_n[None, :] < hi[:, None])
        if SHARE:
            visible &= (together | (o_r // PADDED == i_q))[:, None]
        b_s = tl.where(visible, b_s * scale_log2, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)  # keep exp2 away from inf - inf
        b_p = tl.math.exp2(b_s - b_shift[:, None])
        b_decay = tl.math.exp2(b_max - b_shift)
        b_v = b_k
        if not SAME_KV:
            b_v = _rows(p_v + o_n64 * v_n, m_n, o_v, V, VP)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
        b_max, b_sum = b_new, b_sum * b_decay + tl.sum(b_p, 1)
    b_seen = b_sum > 0
    b_sum = tl.where(b_seen, b_sum, 1.0)
    o_row = ((i_split * B + i_b) * T + o_t) * H + o_h
    p_o = part_o + o_row[:, None] * V + o_v[None, :]
    tl.store(p_o, (b_acc / b_sum[:, None]).to(part_o.dtype.element_ty), mask=m_r[:, None] & (o_v < V)[None, :])
    tl.store(part_lse + o_row, tl.where(b_seen, (b_max + tl.math.log2(b_sum)) * _LN_2, -float("inf")), mask=m_r)


@triton.jit
def join_kernel(
    part_o, part_lse, o, lse, n_rows, n_splits, V, SPLITS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """One query of one head, WIDTH channels: the mean of the partials, each weighted by its sum of exponentials."""
    i_r = tl.program_id(0).to(tl.int64)
    o_s, o_v = tl.arange(0, SPLITS), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    b_lse = tl.load(part_lse + o_s.to(tl.int64) * n_rows + i_r, mask=o_s < n_splits, other=-float("inf"))
    top = tl.max(b_lse, 0)
    shift = tl.where(top == -float("inf"), 0.0, top)
    weight = tl.math.exp2((b_lse - shift) * _LOG2_E)
    total = tl.sum(weight, 0)
    total = tl.where(total > 0, total, 1.0)  # a query that sees nothing: o = 0, lse = -inf
    p_part = part_o + (o_s.to(tl.int64)[:, None] * n_rows + i_r) * V + o_v[None, :]
    b_part = tl.load(p_part, mask=(o_s < n_splits)[:, None] & (o_v < V)[None, :], other=0.0)
    b_o = tl.sum(b_part * weight[:, None], 0) / total
    tl.store(o + i_r * V + o_v, b_o.to(o.dtype.element_ty), mask=o_v < V)
    tl.store(lse + i_r, top + tl.math.log2(total) * _LN_2, mask=tl.program_id(1) == 0)
