"""Selection attention in Triton, by key block: the gradients of keys and values.

1. An inverted index, built on the device. Each entry of `chosen` gets the number of its list, one list for each
   (row, kv head, block); a stable sort groups them, so a list holds its query groups in row order. Lists are cut into
   chunks: CHUNK entries, or a 32nd of the list if that is more, since every query may have chosen the first block.
   List i, which begins at entry e, has chunks e // CHUNK + i and on: no two lists have one in common, and no sum over
   the lists before it is needed; some chunks are empty. All shapes are static bounds; nothing waits for the device.
2. One program a chunk walks its rows (entry, token, head), ROWS at a time, across entries, and writes float32 partials.
   Blocks of 16 keys can have a kernel of their own: `triton_by_entry.py`, for the shapes of `op_by_key.by_entry`.
3. The chunks of a list are summed in order. No atomics: two runs give the same bits.

With documents, blocks are numbered inside each; block m of document i of a row has slot start // b + i + m, which no
two blocks share.

FLIP turns the products of the gradients around (dV^T = dO^T P), so that both operands come from shared memory and the
width of the head fills the 64 rows of Hopper's wide matrix instruction: no registers spill, and blocks of 32 keys can
use it. FLIP_S does the same to the scores (S^T = K Q^T). SCALAR reads the entries of a tile as scalars, so that no
thread waits for another's index.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.selection.triton_by_query import group_of, load_rows, scores


@triton.jit
def _keys_kernel(chosen, first, start, base, key, n, T, n_groups, g0, n_here, n_slots, n_lists,
                 K: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, QUERY_GROUP: tl.constexpr,
                 DOCUMENTS: tl.constexpr, LOWEST: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """The list of each entry of `chosen`, counted from LOWEST; empty places, and blocks after the group's own, go to
    the end, list n_lists.

    The list of a block beyond the row would be that of another head or row.
    """
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m = tl.load(chosen + i, mask=i < n, other=-1)
    i_k = (i // S) % K
    i_b, i_g = row_and_group(i // (S * K), g0, n_here)
    if DOCUMENTS:
        t0 = tl.load(first + i_b * n_groups + i_g, mask=i < n, other=-1)
        m_used = (i < n) & (t0 >= 0)
        own = (t0 - tl.load(start + i_b * T + t0, mask=m_used, other=0)) // BLOCK
        m = tl.where(m_used & (m >= 0) & (m <= own), m + tl.load(base + i_b * T + t0, mask=m_used, other=0), -1)
    else:
        m = tl.where(m <= i_g * QUERY_GROUP // BLOCK, m, -1)
    i_l = tl.where(m >= 0, (i_b * K + i_k) * n_slots + m, n_lists)
    tl.store(key + i, (i_l + LOWEST).to(key.dtype.element_ty), mask=i < n)


@triton.jit
def row_and_group(i, g0, n_here):
    """Row and query group of the i-th of the query groups in `chosen`: n_here of each row, the first of them g0."""
    i_b = i // n_here
    return i_b, g0 + i - i_b * n_here


@triton.jit
def _index_kernel(key, order, first, start, entry, place, begin, list_of, n, T, n_groups, g0, n_here, n_lists, steps,
                  K: tl.constexpr, S: tl.constexpr, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
                  LOWEST: tl.constexpr, CHUNK: tl.constexpr, MAX: tl.constexpr, TILE: tl.constexpr,
                  LISTS: tl.constexpr):  # fmt: skip
    """The index, from sorted keys: programs for LISTS lists each, which take longest, then for TILE entries each."""
    n_of_lists = tl.cdiv(n_lists + 1, LISTS)
    if tl.program_id(0) < n_of_lists:
        o_l = tl.program_id(0) * LISTS + tl.arange(0, LISTS)
        _write_lists(key, begin, list_of, o_l, n, n_lists, steps, LOWEST, CHUNK, MAX, LISTS)
    else:
        i = (tl.program_id(0) - n_of_lists) * TILE + tl.arange(0, TILE)
        _write_entries(order, first, start, entry, place, i, n, T, n_groups, g0, n_here, K, S, QUERY_GROUP, DOCUMENTS)


@triton.jit
def _write_entries(order, first, start, entry, place, i, n, T, n_groups, g0, n_here,
                   K: tl.constexpr, S: tl.constexpr, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):  # fmt: skip
    """Of each sorted entry: its query group, as `entry_at` has it, and its place in `chosen`."""
    i_place = tl.load(order + i, mask=i < n, other=0).to(tl.int32)
    b_entry = entry_at(i_place, first, start, T, n_groups, g0, n_here, K, S, QUERY_GROUP, DOCUMENTS)
    tl.store(entry + i, b_entry, mask=i < n)
    tl.store(place + i, i_place, mask=i < n)


@triton.jit
def entry_at(i_place, first, start, T, n_groups, g0, n_here,
             K: tl.constexpr, S: tl.constexpr, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):  # fmt: skip
    """The query group of a place in `chosen`, as first token * 32 + number of tokens."""
    i_b, i_g = row_and_group(i_place // (S * K), g0, n_here)
    t0, n_tokens, _ = group_of(first, start, i_b, i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    return t0 * 32 + n_tokens


@triton.jit
def _entries_kernel(place, first, start, entry, n, T, n_groups, g0, n_here,
                    K: tl.constexpr, S: tl.constexpr, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
                    TILE: tl.constexpr):  # fmt: skip
    """`entry` from `place`: the numbers that `_index_kernel` wrote."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i_place = tl.load(place + i, mask=i < n, other=0)
    b_entry = entry_at(i_place, first, start, T, n_groups, g0, n_here, K, S, QUERY_GROUP, DOCUMENTS)
    tl.store(entry + i, b_entry, mask=i < n)


@triton.jit
def _write_lists(key, begin, list_of, o_l, n, n_lists, steps,
                 LOWEST: tl.constexpr, CHUNK: tl.constexpr, MAX: tl.constexpr, LISTS: tl.constexpr):  # fmt: skip
    """Where lists begin in the sorted keys, by bisection, and the list of each of their chunks.

    `list_of` holds -1 before. List n_lists is that of the empty places, which has no chunks.
    """
    lo, hi = tl.zeros([LISTS], tl.int64), tl.zeros([LISTS], tl.int64) + n
    lo2, hi2 = lo, hi
    for _ in range(0, steps):
        mid, mid2 = (lo + hi) // 2, (lo2 + hi2) // 2
        below = (lo < hi) & (tl.load(key + mid, mask=lo < hi, other=0) < o_l + LOWEST)
        below2 = (lo2 < hi2) & (tl.load(key + mid2, mask=lo2 < hi2, other=0) < o_l + 1 + LOWEST)
        lo, hi = tl.where(below, mid + 1, lo), tl.where(below | (lo >= hi), hi, mid)
        lo2, hi2 = tl.where(below2, mid2 + 1, lo2), tl.where(below2 | (lo2 >= hi2), hi2, mid2)
    lo, lo2 = lo.to(tl.int32), lo2.to(tl.int32)
    tl.store(begin + o_l, lo, mask=o_l <= n_lists)
    n_chunks = tl.where(o_l < n_lists, tl.cdiv(lo2 - lo, chunk_length(lo2 - lo, CHUNK, MAX)), 0)
    for c in range(0, tl.max(n_chunks, 0)):
        tl.store(list_of + lo // CHUNK + o_l + c, o_l, mask=c < n_chunks)


@triton.jit
def chunk_length(length, CHUNK: tl.constexpr, MAX: tl.constexpr):
    """Entries of a chunk: a multiple of CHUNK, so that a list has MAX chunks at most."""
    return CHUNK * tl.maximum(tl.cdiv(length, CHUNK * MAX), 1)


@triton.jit
def chunks_of(begin, i_l, CHUNK: tl.constexpr, MAX: tl.constexpr):
    """The entries [first, end) of a list, the length of its chunks, and the first of them."""
    first, end = tl.load(begin + i_l), tl.load(begin + i_l + 1)
    return first, end, chunk_length(end - first, CHUNK, MAX), first // CHUNK + i_l


@triton.jit
def _selection_bwd_dkdv_kernel(
    q, k, v, q_rope, k_rope, do, lse, delta, entry, place, begin, list_of, slot_start, part,
    part_q, weight_q, part_r, weight_r,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, qr_b, qr_t, qr_h, kr_b, kr_t, do_b, do_t, do_h,
    T, n_slots, scale, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, BLOCK: tl.constexpr, DOCUMENTS: tl.constexpr,
    CHUNK: tl.constexpr, MAX: tl.constexpr, GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    FLIP: tl.constexpr, FLIP_S: tl.constexpr, SCALAR: tl.constexpr, DQ: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Partial dk | dv | dk_rope of one chunk and KEYS keys of its block; with DQ, partial dq of each row too."""
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
    if R > 0:
        acc_r = tl.zeros([RP, KEYS] if FLIP else [KEYS, RP], tl.float32)
    acc_k = tl.zeros([DP, KEYS] if FLIP else [KEYS, DP], tl.float32)
    acc_v = tl.zeros([VP, KEYS] if FLIP else [KEYS, VP], tl.float32)

    if AHEAD:
        following = entries(entry, e_begin, e_end, tl.arange(0, ROWS), GROUP_ROWS)
    for r in range(0, (e_end - e_begin) * GROUP_ROWS, ROWS):
        o_r = r + tl.arange(0, ROWS)
        ENTRIES: tl.constexpr = ROWS // GROUP_ROWS
        if AHEAD:
            group = following
            following = entries(entry, e_begin, e_end, o_r + ROWS, GROUP_ROWS)
        elif not SCALAR:
            group = entries(entry, e_begin, e_end, o_r, GROUP_ROWS)
        else:
            group = tl.load(entry + e_begin + r // GROUP_ROWS) + tl.zeros([ROWS], tl.int32)
            for i in tl.static_range(1, ENTRIES):
                i_e = e_begin + r // GROUP_ROWS + i
                group = tl.where(
                    o_r // GROUP_ROWS == r // GROUP_ROWS + i, tl.load(entry + i_e, mask=i_e < e_end, other=0), group
                )
        o_t = (group >> 5) + o_r % GROUP_ROWS // G
        m_r = o_r % GROUP_ROWS // G < (group & 31)
        o_t64 = tl.where(m_r, o_t, 0).to(tl.int64)  # rows past the end read row 0 and weigh nothing
        o_h = i_k * G + o_r % GROUP_ROWS % G
        b_q = load_rows(q + i_b * q_b + o_t64[:, None] * q_t + o_h[:, None] * q_h + o_d[None, :], o_d, D, DP)
        b_do = load_rows(do + i_b * do_b + o_t64[:, None] * do_t + o_h[:, None] * do_h + o_v[None, :], o_v, V, VP)
        b_qr = b_q
        if R > 0:
            p_qr = q_rope + i_b * qr_b + o_t64[:, None] * qr_t + o_h[:, None] * qr_h + o_e[None, :]
            b_qr = load_rows(p_qr, o_e, R, RP)
        o_stat = ((i_b * K + i_k) * T + o_t64) * G + o_r % GROUP_ROWS % G
        b_lse = tl.where(m_r, tl.load(lse + o_stat), float("inf"))  # rows that are none: p = 0
        b_delta = tl.load(delta + o_stat)
        b_p, b_ds = score_gradients(
            b_q, b_k, b_qr, b_kr, b_do, b_v, b_lse, b_delta, o_n, o_t, scale_log2, R > 0, FLIP_S
        )
        acc_v = add_transposed_product(acc_v, b_p, b_do, FLIP)
        acc_k = add_transposed_product(acc_k, b_ds, b_q, FLIP)
        if R > 0:
            acc_r = add_transposed_product(acc_r, b_ds, b_qr, FLIP)
        if DQ:
            o_p = partial_rows(place, e_begin, e_end, o_r, GROUP_ROWS, BLOCK // KEYS)
            b_dq = tl.dot(b_ds, b_k, input_precision="ieee")
            write_partial(part_q, weight_q, o_p, m_r, b_dq, o_d, D)
            if R > 0:
                b_dqr = tl.dot(b_ds, b_kr, input_precision="ieee")
                write_partial(part_r, weight_r, o_p, m_r, b_dqr, o_e, R)

    p_part = part + partial_keys(i_c, BLOCK, KEYS) * (D + V + R)
    tl.store(p_part + o_d[None, :], (tl.trans(acc_k) if FLIP else acc_k) * scale, mask=o_d[None, :] < D)
    tl.store(p_part + D + o_v[None, :], tl.trans(acc_v) if FLIP else acc_v, mask=o_v[None, :] < V)
    if R > 0:
        tl.store(p_part + D + V + o_e[None, :], (tl.trans(acc_r) if FLIP else acc_r) * scale, mask=o_e[None, :] < R)


@triton.jit
def entries_of_chunk(begin, i_c, i_l, CHUNK: tl.constexpr, MAX: tl.constexpr):
    """The entries [begin, end) of chunk i_c, which is one of list i_l."""
    list_begin, list_end, length, first_chunk = chunks_of(begin, i_l, CHUNK, MAX)
    e_begin = list_begin + (i_c - first_chunk) * length
    return e_begin, tl.minimum(e_begin + length, list_end)


@triton.jit
def keys_of_list(
    k, v, k_rope, slot_start, i_l, k_b, k_t, k_h, v_b, v_t, v_h, kr_b, kr_t, T, n_slots,
    K: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    V: tl.constexpr, VP: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Row and kv head of a list, the first token of the program's keys of its block, and keys, values and rotary keys.

    For tokens past the row those of its last token.
    """
    i_b, i_k = (i_l // n_slots // K).to(tl.int64), (i_l // n_slots % K).to(tl.int64)
    if DOCUMENTS:
        key0 = tl.load(slot_start + i_b * n_slots + i_l % n_slots)
    else:
        key0 = i_l % n_slots * BLOCK
    key0 += tl.program_id(1) * KEYS
    o_d, o_e, o_v = tl.arange(0, DP), tl.arange(0, RP), tl.arange(0, VP)
    o_n64 = tl.minimum(key0 + tl.arange(0, KEYS), T - 1).to(tl.int64)[:, None]
    b_k = load_rows(k + i_b * k_b + i_k * k_h + o_n64 * k_t + o_d[None, :], o_d, D, DP)
    b_v = load_rows(v + i_b * v_b + i_k * v_h + o_n64 * v_t + o_v[None, :], o_v, V, VP)
    b_kr = b_k
    if R > 0:
        b_kr = load_rows(k_rope + i_b * kr_b + o_n64 * kr_t + o_e[None, :], o_e, R, RP)
    return i_b, i_k, key0, b_k, b_v, b_kr


@triton.jit
def score_gradients(
    b_q, b_k, b_qr, b_kr, b_do, b_v, b_lse, b_delta, o_n, o_t, scale_log2, ROPE: tl.constexpr, FLIP: tl.constexpr
):
    """Weights of keys o_n for rows of tokens o_t, and the gradients of their scores, both in the dtype of the rows.

    A row weighs nothing where b_lse is inf or o_t is -1.
    """
    b_s = scores(b_q, b_k, b_qr, b_kr, ROPE, FLIP) * scale_log2 - b_lse[:, None]
    b_p = tl.exp2(tl.where(o_n[None, :] <= o_t[:, None], b_s, float("-inf")))
    b_dp = scores(b_do, b_v, b_do, b_v, False, FLIP)
    b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_q.dtype)
    return b_p.to(b_do.dtype), b_ds


@triton.jit
def partial_keys(i_c, BLOCK: tl.constexpr, KEYS: tl.constexpr):
    """Where the program's keys of chunk i_c have their partial results, [KEYS, 1]."""
    return (i_c.to(tl.int64) * BLOCK + tl.program_id(1) * KEYS + tl.arange(0, KEYS))[:, None]


@triton.jit
def entries(p, e_begin, e_end, o_r, GROUP_ROWS: tl.constexpr):
    """What p, `entry` or `place`, holds for each row of a tile; 0 for rows past the chunk."""
    return tl.load(p + e_begin + o_r // GROUP_ROWS, mask=o_r < (e_end - e_begin) * GROUP_ROWS, other=0)


@triton.jit
def first_token(entry, e_begin, r, GROUP_ROWS: tl.constexpr):
    """The first token of the tile at row r of a chunk: entries are in the order of their tokens."""
    return tl.load(entry + e_begin + r // GROUP_ROWS) >> 5


@triton.jit
def partial_rows(place, e_begin, e_end, o_r, GROUP_ROWS: tl.constexpr, PIECES: tl.constexpr):
    """Where the partial results of a tile's rows go: [place, piece of the block, row of the query group]."""
    i_place = entries(place, e_begin, e_end, o_r, GROUP_ROWS).to(tl.int64)
    return (i_place * PIECES + tl.program_id(1)) * GROUP_ROWS + o_r % GROUP_ROWS


@triton.jit
def write_partial(part, weight, o_p, m_r, x, o_w, WIDTH: tl.constexpr):
    """Rows of x as 16 bits a number and one float32 a row: x over a power of two near its largest magnitude, and that.

    In float16 the quotient keeps 11 bits whatever the range of x, eight times as exact as bfloat16.
    """
    top = tl.maximum(tl.max(tl.abs(x), 1), 1e-37).to(tl.int32, bitcast=True) & 0x7F800000
    inverse = (0x7F000000 - top).to(tl.float32, bitcast=True)  # the exponent negated
    p_part = part + o_p[:, None] * WIDTH + o_w[None, :]
    tl.store(p_part, (x * inverse[:, None]).to(part.dtype.element_ty), mask=m_r[:, None] & (o_w[None, :] < WIDTH))
    tl.store(weight + o_p, top.to(tl.float32, bitcast=True), mask=m_r)


@triton.jit
def add_transposed_product(acc, a, b, FLIP: tl.constexpr):
    """acc + a^T b; with FLIP acc holds the transpose, and so does the result."""
    if FLIP:
        acc = tl.dot(tl.trans(b), a, acc, input_precision="ieee")
    else:
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    return acc


@triton.jit
def _sum_chunks_kernel(
    part, begin, slot_start, start, dk, dv, dk_rope, T, n_slots,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, DOCUMENTS: tl.constexpr,
    CHUNK: tl.constexpr, MAX: tl.constexpr, ADD: tl.constexpr,
    TILE_D: tl.constexpr, TILE_V: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """Sum the chunks of a block in order: a tile of columns of dk, of dv, or of dk_rope, there over all kv heads.

    With ADD onto what is there.
    """
    i_b = (tl.program_id(0) // n_slots // K).to(tl.int64)
    i_k, i_m, i_w = tl.program_id(0) // n_slots % K, tl.program_id(0) % n_slots, tl.program_id(1)
    o_n = tl.arange(0, BLOCK)
    if DOCUMENTS:
        key0 = tl.load(slot_start + i_b * n_slots + i_m)
        if key0 < 0:
            return
        m_n = key0 + o_n < T
        m_n = m_n & (tl.load(start + i_b * T + key0 + o_n, mask=m_n, other=-1) == tl.load(start + i_b * T + key0))
    else:
        key0 = i_m * BLOCK
        m_n = key0 + o_n < T
    i_l = (i_b * K + i_k) * n_slots + i_m
    o_row = i_b * T + key0 + o_n
    TILES_D: tl.constexpr = (D + TILE_D - 1) // TILE_D
    TILES_V: tl.constexpr = (V + TILE_V - 1) // TILE_V
    if i_w < TILES_D:
        _sum_columns(part, begin, i_l, n_slots, dk, o_row * K + i_k, m_n, i_w * TILE_D, 0, D,
                     1, D + V + R, BLOCK, CHUNK, MAX, ADD, TILE_D)  # fmt: skip
    elif i_w < TILES_D + TILES_V:
        _sum_columns(part, begin, i_l, n_slots, dv, o_row * K + i_k, m_n, (i_w - TILES_D) * TILE_V, D, V,
                     1, D + V + R, BLOCK, CHUNK, MAX, ADD, TILE_V)  # fmt: skip
    if R > 0:
        of_rope = i_w - TILES_D - TILES_V
        if (of_rope >= 0) & (i_k == 0):
            _sum_columns(part, begin, i_l, n_slots, dk_rope, o_row, m_n, of_rope * TILE_R, D + V, R,
                         K, D + V + R, BLOCK, CHUNK, MAX, ADD, TILE_R)  # fmt: skip


@triton.jit
def _sum_columns(
    part, begin, i_l, n_slots, out, o_row, m_n, w0,
    OFFSET: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, PART_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, MAX: tl.constexpr, ADD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out[o_row, w0..] = the sum over HEADS lists, n_slots apart, of columns OFFSET + w0.. of their chunks."""
    o_w = w0 + tl.arange(0, TILE)
    m = m_n[:, None] & (o_w[None, :] < WIDTH)
    p_out = out + o_row[:, None] * WIDTH + o_w[None, :]
    acc = tl.zeros([BLOCK, TILE], tl.float32)
    if ADD:
        acc += tl.load(p_out, mask=m, other=0.0)
    for i_h in range(0, HEADS):
        first, end, length, first_chunk = chunks_of(begin, i_l + i_h * n_slots, CHUNK, MAX)
        p_part = part + first_chunk.to(tl.int64) * BLOCK * PART_WIDTH + OFFSET
        p_part += tl.arange(0, BLOCK)[:, None] * PART_WIDTH + o_w[None, :]
        for _ in range(0, tl.cdiv(end - first, length)):
            acc += tl.load(p_part, mask=m, other=0.0)
            p_part += BLOCK * PART_WIDTH
    tl.store(p_out, acc.to(out.dtype.element_ty), mask=m)
