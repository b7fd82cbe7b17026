"""Selection attention in Triton, by key block: the gradients of short blocks of keys and values.

As `triton_by_key.py`, but a tile is one entry of a list: the rows of one query group. Their offsets from its first
token are the same for every entry, so they are computed once, before the loop. A block of 16 keys, as many as one
matrix instruction has, is served by one warp where registers suffice: then no warp waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.selection.triton_by_key import (
    add_transposed_product,
    entries_of_chunk,
    keys_of_list,
    partial_keys,
    score_gradients,
)
from zoo.kernels.selection.triton_by_query import in_registers


@triton.jit
def _selection_bwd_dkdv_by_entry_kernel(
    q, k, v, q_rope, k_rope, do, lse, delta, entry, begin, list_of, slot_start, start, part,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, qr_b, qr_t, qr_h, kr_b, kr_t, do_b, do_t, do_h,
    T, n_slots, scale, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, BLOCK: tl.constexpr, DOCUMENTS: tl.constexpr,
    CHUNK: tl.constexpr, MAX: tl.constexpr, GROUP_ROWS: tl.constexpr, RAGGED: tl.constexpr,
    KEYS: tl.constexpr, ENTRIES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Partial dk | dv | dk_rope of one chunk and KEYS keys of its block.

    RAGGED: some query groups have fewer rows than a tile.  ENTRIES: 1 or 2, entries in one pass of the loop. With one
    the number of the next entry is read a pass ahead.
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
    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    if DOCUMENTS and KEEP:  # 0 for keys of another document, of which a NaN would reach all keys of the product
        p_start = start + i_b * T
        m_n = (tl.load(p_start + tl.minimum(o_n, T - 1)) == tl.load(p_start + key0))[:, None]
        b_k, b_v = tl.where(m_n, b_k, 0.0).to(b_k.dtype), tl.where(m_n, b_v, 0.0).to(b_v.dtype)
        if R > 0:
            b_kr = tl.where(m_n, b_kr, 0.0).to(b_kr.dtype)
    b_k, b_v = in_registers(b_k, KEYS, KEEP), in_registers(b_v, KEYS, KEEP)
    acc_k, acc_v = tl.zeros([KEYS, DP], tl.float32), tl.zeros([KEYS, VP], tl.float32)

    o_r = tl.arange(0, GROUP_ROWS)
    i_token = o_r // G
    # Apart from the pointers, so that the loop multiplies an entry's first token once a warp, and not in each thread.
    o_token, o_h = i_token.to(tl.int64)[:, None], (o_r % G).to(tl.int64)[:, None]
    p_q, o_q = q + i_b * q_b + i_k * G * q_h, o_token * q_t + o_h * q_h + o_d[None, :]
    p_do, o_do = do + i_b * do_b + i_k * G * do_h, o_token * do_t + o_h * do_h + o_v[None, :]
    if R > 0:
        b_kr = in_registers(b_kr, KEYS, KEEP)
        acc_r = tl.zeros([KEYS, RP], tl.float32)
        p_qr, o_qr = q_rope + i_b * qr_b + i_k * G * qr_h, o_token * qr_t + o_h * qr_h + o_e[None, :]
    p_lse, p_delta = lse + (i_b * K + i_k) * T * G + o_r, delta + (i_b * K + i_k) * T * G + o_r

    following = tl.load(entry + e_begin)
    for e in range(e_begin, e_end, ENTRIES):
        for i in tl.static_range(ENTRIES):
            if ENTRIES == 1:
                group = following
                following = tl.load(entry + tl.minimum(e + 1, e_end - 1))
            else:
                group = tl.load(entry + tl.minimum(e + i, e_end - 1))
                group = tl.where(e + i < e_end, group, group & -32)  # the same tokens, and none of them counts
            t0 = (group >> 5).to(tl.int64)
            m_r = i_token < (group & 31)
            o_t = tl.where(m_r, (group >> 5) + i_token, -1)
            b_q = load_group(p_q + t0 * q_t + o_q, m_r, o_d, D, DP, RAGGED)
            b_do = load_group(p_do + t0 * do_t + o_do, m_r, o_v, V, VP, RAGGED)
            b_qr = b_q
            if R > 0:
                b_qr = load_group(p_qr + t0 * qr_t + o_qr, m_r, o_e, R, RP, RAGGED)
            if RAGGED:
                b_lse = tl.load(p_lse + t0 * G, mask=m_r, other=0.0)
                b_delta = tl.load(p_delta + t0 * G, mask=m_r, other=0.0)
            else:
                b_lse, b_delta = tl.load(p_lse + t0 * G), tl.load(p_delta + t0 * G)
            b_p, b_ds = score_gradients(
                b_q, b_k, b_qr, b_kr, b_do, b_v, b_lse, b_delta, o_n, o_t, scale_log2, R > 0, True
            )
            acc_v = add_transposed_product(acc_v, b_p, b_do, False)
            acc_k = add_transposed_product(acc_k, b_ds, b_q, False)
            if R > 0:
                acc_r = add_transposed_product(acc_r, b_ds, b_qr, False)

    p_part = part + partial_keys(i_c, BLOCK, KEYS) * (D + V + R)
    tl.store(p_part + o_d[None, :], acc_k * scale, mask=o_d[None, :] < D)
    tl.store(p_part + D + o_v[None, :], acc_v, mask=o_v[None, :] < V)
    if R > 0:
        tl.store(p_part + D + V + o_e[None, :], acc_r * scale, mask=o_e[None, :] < R)


@triton.jit
def load_group(p, m_r, o_d, WIDTH: tl.constexpr, PADDED: tl.constexpr, RAGGED: tl.constexpr):
    """Rows of a query group, zeros for the rows it lacks."""
    if RAGGED or WIDTH != PADDED:
        x = tl.load(p, mask=m_r[:, None] & (o_d[None, :] < WIDTH), other=0.0)
    else:
        x = tl.load(p)
    return x
