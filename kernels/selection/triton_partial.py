"""Selection attention in Triton, by key block: forward and dq too, as partial results of each chosen block.

By query group, every group gathers its keys and values from L2 for `query_group` x G rows: with 4 rows, three quarters
of the smallest matrix instruction are padding, and the gather bounds the time. By key block, a tile gathers 128 rows of
queries from many groups, and reads the keys of its block once for all of them. But the blocks of a row are spread over
many programs:

1. Forward: for each query group and chosen block, a partial output and its share of the softmax go to that place of
   `chosen`. Other kernels weigh the partials of a query group, and add them in the order of the places.
2. Backward: the kernel of dk and dv (`triton_by_key.py`) has the gradient of the scores, and writes partial dq in the
   same way, so that scores and dP are computed once for all three gradients. Another kernel adds the partials.

Partials of bfloat16 are float16 numbers, scaled by a float32 a row, written once and read once: 4 T K n G (D + V) bytes
for forward and backward. WORKSPACE in `op_partial.py` bounds the query groups that have partials at a time. There are
no atomics, so two runs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.selection.triton_by_key import (
    entries,
    entries_of_chunk,
    first_token,
    keys_of_list,
    partial_rows,
)
from zoo.kernels.selection.triton_by_query import group_of, load_rows, scores


@triton.jit
def _selection_fwd_by_key_kernel(
    q, k, v, q_rope, k_rope, entry, place, begin, list_of, slot_start, part, part_m, part_l,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, qr_b, qr_t, qr_h, kr_b, kr_t,
    T, n_slots, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, BLOCK: tl.constexpr, DOCUMENTS: tl.constexpr,
    CHUNK: tl.constexpr, MAX: tl.constexpr, GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Partial outputs of the rows of one chunk over KEYS keys of its block.

    part = sum of exp2(s - m) v and l = sum of exp2(s - m), with m the largest score of the row. One power of two scales
    them for all rows: part, which is at most KEYS times the largest value, then ends below 2**15 in float16. Numbers
    down to 2**-29 of that keep 11 bits, so that no row needs a scale of its own.
    """
    i_c = tl.program_id(0)
    i_l = tl.load(list_of + i_c)
    if i_l < 0:
        return
    e_begin, e_end = entries_of_chunk(begin, i_c, i_l, CHUNK, MAX)
    i_b, i_k, key0, b_k, b_v, b_kr = keys_of_list(
        k, v, k_rope, slot_start, i_l, k_b, k_t, k_h, v_b, v_t, v_h, kr_b, kr_t, T, n_slots,
        K, D, DP, R, RP, V, VP, BLOCK, KEYS, DOCUMENTS,
    )  # fmt: skip
    o_n = key0 + tl.arange(0, KEYS)
    key_end = key0 + KEYS - 1  # queries before it do not see all keys
    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    largest = tl.max(tl.max(tl.abs(b_v.to(tl.float32)), 1), 0) * KEYS
    # Exponents are biased by 127; largest * factor is at least 2**14 and less than 2**15.
    exponent = 268 - (tl.maximum(largest, 1e-30).to(tl.int32, bitcast=True) >> 23)
    factor = (exponent << 23).to(tl.float32, bitcast=True)

    for r in range(0, (e_end - e_begin) * GROUP_ROWS, ROWS):
        o_r = r + tl.arange(0, ROWS)
        group = entries(entry, e_begin, e_end, o_r, GROUP_ROWS)
        o_t = (group >> 5) + o_r % GROUP_ROWS // G
        m_r = o_r % GROUP_ROWS // G < (group & 31)
        o_t64 = tl.where(m_r, o_t, 0).to(tl.int64)  # rows past the end read row 0, and are not stored
        o_h = i_k * G + o_r % GROUP_ROWS % G
        b_q = load_rows(q + i_b * q_b + o_t64[:, None] * q_t + o_h[:, None] * q_h + o_d[None, :], o_d, D, DP)
        b_qr = b_q
        if R > 0:
            p_qr = q_rope + i_b * qr_b + o_t64[:, None] * qr_t + o_h[:, None] * qr_h + o_e[None, :]
            b_qr = load_rows(p_qr, o_e, R, RP)
        b_s = scores(b_q, b_k, b_qr, b_kr, R > 0, False)
        if first_token(entry, e_begin, r, GROUP_ROWS) < key_end:
            b_s = tl.where(o_n[None, :] <= o_t[:, None], b_s, float("-inf"))
        b_m = tl.maximum(tl.max(b_s, 1) * scale_log2, -1e30)  # finite: a row that sees no key of the block yields 0
        b_p = tl.exp2(b_s * scale_log2 - b_m[:, None])
        b_l = tl.sum(b_p, 1)
        acc = tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        o_p = partial_rows(place, e_begin, e_end, o_r, GROUP_ROWS, BLOCK // KEYS)
        p_part = part + o_p[:, None] * V + o_v[None, :]
        tl.store(p_part, (acc * factor).to(part.dtype.element_ty), mask=m_r[:, None] & (o_v[None, :] < V))
        tl.store(part_m + o_p, b_m - (exponent - 127), mask=m_r)
        tl.store(part_l + o_p, b_l * factor, mask=m_r)


@triton.jit
def groups_of(first, start, i, n, T, n_groups, g0, n_here, K: tl.constexpr, BLOCK: tl.constexpr,
              QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):  # fmt: skip
    """Of indices into [query group here, kv head], n in all: row of the batch, kv head, first token, number of tokens,
    and the group's own block. Indices past the end stand for the last one."""
    i = tl.minimum(i, n - 1)
    i_b, i_g = i // K // n_here, (g0 + i // K % n_here).to(tl.int32)
    t0, n_tokens, origin = group_of(first, start, i_b, i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    return i_b, i % K, t0, n_tokens, (t0 - origin) // BLOCK


@triton.jit
def _weights_kernel(
    part_m, part_l, chosen, first, start, lse, n, T, n_groups, g0, n_here,
    K: tl.constexpr, G: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, QUERY_GROUP: tl.constexpr,
    DOCUMENTS: tl.constexpr, GROUP_ROWS: tl.constexpr, PIECES: tl.constexpr, PLACES: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of each row from those of its partials; part_m becomes what a partial counts in the output."""
    i = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    i_b, i_k, t0, n_tokens, own = groups_of(
        first, start, i, n, T, n_groups, g0, n_here, K, BLOCK, QUERY_GROUP, DOCUMENTS
    )
    o_s, o_r = tl.arange(0, PLACES), tl.arange(0, GROUP_ROWS)
    m_r = (i < n)[:, None] & (o_r[None, :] // G < n_tokens[:, None])
    m_s = (i < n)[:, None] & (o_s[None, :] < S * PIECES)
    m = tl.load(chosen + i[:, None] * S + o_s[None, :] // PIECES, mask=m_s, other=-1)
    written = ((m >= 0) & (m <= own[:, None]))[:, :, None] & m_r[:, None, :]
    o_p = (i[:, None] * S * PIECES + o_s[None, :])[:, :, None] * GROUP_ROWS + o_r[None, None, :]
    b_m = tl.load(part_m + o_p, mask=written, other=float("-inf"))
    b_l = tl.load(part_l + o_p, mask=written, other=0.0)
    top = tl.maximum(tl.max(b_m, 1), -1e30)
    b_p = tl.exp2(b_m - top[:, None, :])
    total = tl.sum(b_p * b_l, 1)
    total = tl.where(total > 0, total, 1.0)
    tl.store(part_m + o_p, b_p / total[:, None, :], mask=written)
    o_stat = (((i_b * K + i_k) * T + t0) * G)[:, None] + o_r[None, :]
    tl.store(lse + o_stat, top + tl.log2(total), mask=m_r)


@triton.jit
def _combine_kernel(
    part, weight, chosen, first, start, out, n, T, n_groups, g0, n_here, factor,
    K: tl.constexpr, G: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, QUERY_GROUP: tl.constexpr,
    DOCUMENTS: tl.constexpr, GROUP_ROWS: tl.constexpr, PIECES: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """factor * the weighted sum of a row's partials, in the order of their places.

    n: query groups x kv heads here.  A place was written if it names block 0 to the group's own block.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i, o_r = row // GROUP_ROWS, (row % GROUP_ROWS).to(tl.int32)
    i_b, i_k, t0, n_tokens, own = groups_of(
        first, start, i, n, T, n_groups, g0, n_here, K, BLOCK, QUERY_GROUP, DOCUMENTS
    )
    m_r, o_t = (i < n) & (o_r // G < n_tokens), t0 + o_r // G
    o_w = tl.arange(0, PADDED)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    for s0 in range(0, S * PIECES, UNROLL):
        for u in tl.static_range(UNROLL):
            s = s0 + u
            m = tl.load(chosen + i * S + s // PIECES, mask=m_r & (s < S * PIECES), other=-1)
            m_s = (m >= 0) & (m <= own)
            o_p = (i * S * PIECES + s) * GROUP_ROWS + o_r
            b_w = tl.load(weight + o_p, mask=m_s, other=0.0)
            p_part = part + o_p[:, None] * WIDTH + o_w[None, :]
            x = tl.load(p_part, mask=m_s[:, None] & (o_w[None, :] < WIDTH), other=0.0)
            acc += x.to(tl.float32) * b_w[:, None]
    o_row = ((i_b * T + o_t) * K + i_k) * G + o_r % G
    tl.store(out + o_row[:, None] * WIDTH + o_w[None, :], (acc * factor).to(out.dtype.element_ty),
             mask=m_r[:, None] & (o_w[None, :] < WIDTH))  # fmt: skip


@triton.jit
def _delta_kernel(o, do, delta, do_b, do_t, do_h, n, T,
                  K: tl.constexpr, G: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """delta = rowsum(o do), [B, K, T, G]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_r, o_v = row < n, tl.arange(0, VP)
    i_h, i_t, i_b = row % (K * G), row // (K * G) % T, row // (K * G) // T
    m = m_r[:, None] & (o_v[None, :] < V)
    b_o = tl.load(o + row[:, None] * V + o_v[None, :], mask=m, other=0.0).to(tl.float32)
    p_do = do + (i_b * do_b + i_t * do_t + i_h * do_h)[:, None] + o_v[None, :]
    b_do = tl.load(p_do, mask=m, other=0.0).to(tl.float32)
    tl.store(delta + ((i_b * K + i_h // G) * T + i_t) * G + i_h % G, tl.sum(b_o * b_do, 1), mask=m_r)
