"""Selection attention in Triton, by query group: the forward, and the gradient of the queries.

A program serves one query group and one kv head. Its tile has `query_group` x G rows (row r = token r // G, head
r % G), so that every key loaded serves all of them; its keys are the tokens of the chosen blocks, gathered KEYS at a
time, several small blocks or a part of a large one. The operation is bound by this gather's traffic through L2:
T/q * K * n*b * (D + R + V) elements.

Scores are kept in base 2. A place is read only if it names block 0 to the group's own block, `own`; any other number is
an empty place. So every key that is read lies in the query's document, and key <= t is the whole mask.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_of(first, start, i_b, i_g, T, n_groups, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):
    """First token, number of tokens, and first token of the document of a query group (0 tokens: unused)."""
    if DOCUMENTS:
        p = first + i_b * n_groups + i_g
        t0 = tl.load(p)
        following = tl.load(p + 1, mask=i_g + 1 < n_groups, other=-1)
        n_tokens = tl.where(t0 < 0, 0, tl.where(following < 0, T, following) - t0)
        t0 = tl.maximum(t0, 0)
        origin = tl.load(start + i_b * T + t0)
    else:
        t0 = i_g * QUERY_GROUP
        n_tokens = tl.minimum(T - t0, QUERY_GROUP)
        origin = t0 * 0
    return t0, n_tokens, origin


@triton.jit
def load_rows(p, o_d, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of which every one may be read; columns beyond WIDTH are zero."""
    if WIDTH == PADDED:
        x = tl.load(p)
    else:
        x = tl.load(p, mask=o_d[None, :] < WIDTH, other=0.0)
    return x


@triton.jit
def scores(a, b, a_rope, b_rope, ROPE: tl.constexpr, FLIP: tl.constexpr):
    """a b^T (+ the rotary part), computed as (b a^T)^T with FLIP."""
    if FLIP:
        s = tl.dot(b, tl.trans(a), input_precision="ieee")
        if ROPE:
            s = tl.dot(b_rope, tl.trans(a_rope), s, input_precision="ieee")
        s = tl.trans(s)
    else:
        s = tl.dot(a, tl.trans(b), input_precision="ieee")
        if ROPE:
            s = tl.dot(a_rope, tl.trans(b_rope), s, input_precision="ieee")
    return s


@triton.jit
def n_tiles(p_chosen, n_tokens, own, S: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr):
    """Tiles of keys up to the last place that names a block: early queries have fewer."""
    o_s = tl.arange(0, SP)
    m = tl.load(p_chosen + o_s, mask=o_s < S, other=-1)
    n_places = tl.max(tl.where((m >= 0) & (m <= own), o_s + 1, 0), 0)
    return tl.where(n_tokens > 0, tl.cdiv(n_places * BLOCK, KEYS), 0)


@triton.jit
def gathered_keys(
    p_chosen, j, origin, own, T, t_last, S: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    """Token of each of the tile's keys, and the last of them; T, which no query sees, in an empty place.

    And the row of each, as `row` + `step`: keys past t_last are not seen, so t_last is read instead. Steps within one
    block are small numbers, so that no thread multiplies numbers of 64 bits.
    """
    o_n = tl.arange(0, KEYS)
    if KEYS <= BLOCK:
        m = tl.load(p_chosen + j * KEYS // BLOCK)
        m = tl.where(m <= own, m, -1)
        first = tl.where(m >= 0, origin + m * BLOCK + (j * KEYS) % BLOCK, T)
        token, last = first + o_n, first + KEYS - 1
        row = tl.minimum(first, t_last)
        step = tl.minimum(o_n, t_last - row)
        row = row.to(tl.int64)
    else:
        token = tl.full([KEYS], 0, tl.int32)
        last = origin * 0
        for i in tl.static_range(KEYS // BLOCK):
            place = j * (KEYS // BLOCK) + i
            m = tl.load(p_chosen + tl.minimum(place, S - 1))
            if S % (KEYS // BLOCK) != 0:
                m = tl.where(place < S, m, -1)
            first = tl.where((m >= 0) & (m <= own), origin + m * BLOCK, T)
            token = tl.where(o_n // BLOCK == i, first, token)
            last = tl.maximum(last, first + BLOCK - 1)
        token += o_n % BLOCK
        row = tl.full([], 0, tl.int64)
        step = tl.minimum(token, t_last).to(tl.int64)
    return token, last, row, step[:, None]


@triton.jit
def in_registers(x, ROWS: tl.constexpr, KEEP: tl.constexpr):
    """x [ROWS, width], with KEEP as the product of the identity and x: the same numbers where all of x are finite.

    An operand that was loaded is read from shared memory again for every tile of the loop; Triton sinks that read into
    the loop. The result of a product stays in registers. Shared memory bounds the kernels of 16 rows.
    A NaN or an inf reaches all rows, because 0 * inf is NaN. So only backward passes use it, where one of them makes
    most gradients of its document NaN in any case. Rows of other documents have to be 0.
    """
    if KEEP:
        identity = (tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]).to(x.dtype)
        x = tl.dot(identity, x, input_precision="ieee").to(x.dtype)
    return x


@triton.jit
def _selection_fwd_kernel(
    q, k, v, q_rope, k_rope, chosen, first, start, o, lse,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, qr_b, qr_t, qr_h, kr_b, kr_t,
    T, n_groups, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (QUERY_GROUP * G + ROWS - 1) // ROWS
    i_g = tl.program_id(0) // TILES
    i_b = (tl.program_id(1) // K).to(tl.int64)
    i_k = (tl.program_id(1) % K).to(tl.int64)
    t0, n_tokens, origin = group_of(first, start, i_b, i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    o_r = (tl.program_id(0) % TILES) * ROWS + tl.arange(0, ROWS)
    m_r = o_r // G < n_tokens
    o_t = t0 + o_r // G
    o_h = i_k * G + o_r % G
    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    p_q = q + i_b * q_b + o_t.to(tl.int64)[:, None] * q_t + o_h[:, None] * q_h + o_d[None, :]
    b_q = tl.load(p_q, mask=m_r[:, None] & (o_d[None, :] < D), other=0.0)
    b_qr = b_q
    if R > 0:
        p_qr = q_rope + i_b * qr_b + o_t.to(tl.int64)[:, None] * qr_t + o_h[:, None] * qr_h + o_e[None, :]
        b_qr = tl.load(p_qr, mask=m_r[:, None] & (o_e[None, :] < R), other=0.0)
    p_chosen, own = chosen + ((i_b * n_groups + i_g) * K + i_k) * S, (t0 - origin) // BLOCK
    t_seen = tl.where(m_r, o_t, -1)
    t_last = t0 + n_tokens - 1

    p_k = k + i_b * k_b + i_k * k_h + o_d[None, :]
    p_v = v + i_b * v_b + i_k * v_h + o_v[None, :]
    b_m = tl.full([ROWS], -1e30, tl.float32)  # finite: a row that sees no key yields 0, not NaN
    b_l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VP], tl.float32)
    for j in range(0, n_tiles(p_chosen, n_tokens, own, S, SP, BLOCK, KEYS)):
        o_n, n_last, row, step = gathered_keys(p_chosen, j, origin, own, T, t_last, S, BLOCK, KEYS)
        b_k = load_rows(p_k + row * k_t + step * k_t, o_d, D, DP)
        b_v = load_rows(p_v + row * v_t + step * v_t, o_v, V, VP)
        b_kr = b_k
        if R > 0:
            b_kr = load_rows(k_rope + i_b * kr_b + o_e[None, :] + row * kr_t + step * kr_t, o_e, R, RP)
        b_s = scores(b_q, b_k, b_qr, b_kr, R > 0, False) * scale_log2
        if n_last > t0:  # the block of the query itself, or an empty place
            b_s = tl.where(o_n[None, :] <= t_seen[:, None], b_s, float("-inf"))
        m_new = tl.maximum(b_m, tl.max(b_s, 1))
        alpha = tl.exp2(b_m - m_new)
        b_p = tl.exp2(b_s - m_new[:, None])
        b_l = b_l * alpha + tl.sum(b_p, 1)
        acc = tl.dot(b_p.to(b_v.dtype), b_v, acc * alpha[:, None], input_precision="ieee")
        b_m = m_new

    b_l = tl.where(b_l > 0, b_l, 1.0)
    b_o = acc / b_l[:, None]
    o_row = (i_b * T + o_t) * (K * G) + o_h
    p_o = o + o_row[:, None] * V + o_v[None, :]
    tl.store(p_o, b_o.to(o.dtype.element_ty), mask=m_r[:, None] & (o_v[None, :] < V))
    o_stat = ((i_b * K + i_k) * T + t0) * G + o_r
    tl.store(lse + o_stat, b_m + tl.log2(b_l), mask=m_r)


@triton.jit
def _selection_bwd_dq_kernel(
    q, k, v, q_rope, k_rope, chosen, first, start, o, lse, do, dq, dq_rope, delta,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, qr_b, qr_t, qr_h, kr_b, kr_t, do_b, do_t, do_h,
    T, n_groups, scale, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """dq, and delta = rowsum(o do), which the kernel of dk and dv reads. Goes over the keys as the forward does."""
    TILES: tl.constexpr = (QUERY_GROUP * G + ROWS - 1) // ROWS
    i_g = tl.program_id(0) // TILES
    i_b = (tl.program_id(1) // K).to(tl.int64)
    i_k = (tl.program_id(1) % K).to(tl.int64)
    t0, n_tokens, origin = group_of(first, start, i_b, i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    o_r = (tl.program_id(0) % TILES) * ROWS + tl.arange(0, ROWS)
    m_r = o_r // G < n_tokens
    o_t = t0 + o_r // G
    o_h = i_k * G + o_r % G
    o_row = (i_b * T + o_t) * (K * G) + o_h
    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    m_v = m_r[:, None] & (o_v[None, :] < V)
    b_do = tl.load(do + i_b * do_b + o_t.to(tl.int64)[:, None] * do_t + o_h[:, None] * do_h + o_v[None, :],
                   mask=m_v, other=0.0)  # fmt: skip
    b_o = tl.load(o + o_row[:, None] * V + o_v[None, :], mask=m_v, other=0.0)
    b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)
    b_do = in_registers(b_do, ROWS, KEEP)
    o_stat = ((i_b * K + i_k) * T + t0) * G + o_r
    tl.store(delta + o_stat, b_delta, mask=m_r)
    b_lse = tl.load(lse + o_stat, mask=m_r, other=0.0)
    p_q = q + i_b * q_b + o_t.to(tl.int64)[:, None] * q_t + o_h[:, None] * q_h + o_d[None, :]
    b_q = in_registers(tl.load(p_q, mask=m_r[:, None] & (o_d[None, :] < D), other=0.0), ROWS, KEEP)
    b_qr = b_q
    if R > 0:
        p_qr = q_rope + i_b * qr_b + o_t.to(tl.int64)[:, None] * qr_t + o_h[:, None] * qr_h + o_e[None, :]
        b_qr = in_registers(tl.load(p_qr, mask=m_r[:, None] & (o_e[None, :] < R), other=0.0), ROWS, KEEP)
        acc_r = tl.zeros([ROWS, RP], tl.float32)
    p_chosen, own = chosen + ((i_b * n_groups + i_g) * K + i_k) * S, (t0 - origin) // BLOCK
    t_seen = tl.where(m_r, o_t, -1)
    t_last = t0 + n_tokens - 1

    p_k = k + i_b * k_b + i_k * k_h + o_d[None, :]
    p_v = v + i_b * v_b + i_k * v_h + o_v[None, :]
    acc = tl.zeros([ROWS, DP], tl.float32)
    for j in range(0, n_tiles(p_chosen, n_tokens, own, S, SP, BLOCK, KEYS)):
        o_n, _, row, step = gathered_keys(p_chosen, j, origin, own, T, t_last, S, BLOCK, KEYS)
        b_k = load_rows(p_k + row * k_t + step * k_t, o_d, D, DP)
        b_v = load_rows(p_v + row * v_t + step * v_t, o_v, V, VP)
        b_kr = b_k
        if R > 0:
            b_kr = load_rows(k_rope + i_b * kr_b + o_e[None, :] + row * kr_t + step * kr_t, o_e, R, RP)
        b_s = scores(b_q, b_k, b_qr, b_kr, R > 0, False) * scale_log2 - b_lse[:, None]
        b_p = tl.exp2(tl.where(o_n[None, :] <= t_seen[:, None], b_s, float("-inf")))
        b_dp = scores(b_do, b_v, b_do, b_v, False, False)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
        acc = tl.dot(b_ds, b_k, acc, input_precision="ieee")
        if R > 0:
            acc_r = tl.dot(b_ds, b_kr, acc_r, input_precision="ieee")

    tl.store(dq + o_row[:, None] * D + o_d[None, :], (acc * scale).to(dq.dtype.element_ty),
             mask=m_r[:, None] & (o_d[None, :] < D))  # fmt: skip
    if R > 0:
        tl.store(dq_rope + o_row[:, None] * R + o_e[None, :], (acc_r * scale).to(dq.dtype.element_ty),
                 mask=m_r[:, None] & (o_e[None, :] < R))  # fmt: skip
