"""The top n of each row of importances, in Triton: peaks of chunks, the best chunks, the best blocks in them.

Both tops are exact, by bisection over the bits of the n-th largest: floats of one sign order as the integers of their
bits do. Ties go to the lower index by rank, and a prefix sum writes the chosen in order. `triton.py` says why there are
two steps, and lays out the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(8)  # blocks: a sector of 32 bytes
INFINITY = tl.constexpr(0x7F800000)  # its bits


@triton.jit
def first_tokens(first, start, i_b, o_g, T, n_groups, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Row index of the first token of each group (-1: unused), and of its document."""
    if DOCUMENTS:
        t = tl.load(first + i_b * n_groups + o_g, mask=o_g < n_groups, other=-1)
        origin = tl.load(start + i_b * T + tl.maximum(t, 0))
    else:
        t = tl.where(o_g < n_groups, o_g * QUERY_GROUP, -1)
        origin = tl.zeros_like(t)
    return t, origin


@triton.jit
def own_block(t, origin, SELECTION_BLOCK: tl.constexpr):
    """The selection block of t: the last candidate; -1: none."""
    return tl.where(t >= 0, (t - origin) // SELECTION_BLOCK, -1)


@triton.jit
def _block_values(
    p_row, slot0, o_m, m_candidate, row, PIECES: tl.constexpr, SPAN: tl.constexpr, SUMMED: tl.constexpr
):  # fmt: skip
    """Importance of selection blocks o_m of rows, where m_candidate: p_slc of their SPAN + PIECES - 1 slots."""
    slot = slot0 + o_m * PIECES
    if SUMMED:
        value = tl.load(p_row + o_m, mask=m_candidate, other=0.0)
        value += tl.load(p_row + row // 2 + o_m - 1, mask=m_candidate & (o_m > 0), other=0.0)
    elif PIECES == 1:
        value = tl.load(p_row + slot, mask=m_candidate, other=0.0)
    else:
        # the PIECES that begin in block m, each times the stride-sized pieces that it shares with m
        o_p = tl.arange(0, PIECES)
        p = tl.expand_dims(p_row + slot, -1) + o_p
        weight = tl.minimum(PIECES - o_p, SPAN).to(tl.float32)
        piece = tl.load(p, mask=tl.expand_dims(m_candidate, -1) & (o_p >= 0), other=0.0)
        value = tl.sum(piece * weight, len(p.shape) - 1)
    if not SUMMED:
        for before in tl.static_range(1, SPAN):  # and those before it that reach into it
            reaches = m_candidate & (o_m * PIECES >= before)
            value += min(PIECES, SPAN - before) * tl.load(p_row + slot - before, mask=reaches, other=0.0)
    return value


@triton.jit
def _peak_kernel(
    importance, peak, first, start, T, n_groups, g_begin, g_count, row, n_chunks,
    K: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECTION_BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr, SUMMED: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The highest importance of each of CHUNKS chunks of a row."""
    i_b, i_k, i_g = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K, tl.program_id(0)
    t, origin = first_tokens(first, start, i_b, g_begin + i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    own = own_block(t, origin, SELECTION_BLOCK)
    if tl.program_id(2) * CHUNKS * CHUNK > own:
        return
    o_m = tl.program_id(2) * CHUNKS * CHUNK + tl.arange(0, CHUNKS * CHUNK)
    i_row = ((i_b * K + i_k) * g_count + i_g).to(tl.int64)
    p_row = importance + i_row * row
    SPAN: tl.constexpr = BLOCK // STRIDE
    value = _block_values(p_row, origin // STRIDE, o_m, o_m <= own, row, SELECTION_BLOCK // STRIDE, SPAN, SUMMED)
    value = tl.where(o_m <= own, value, -1.0)
    o_p = tl.program_id(2) * CHUNKS + tl.arange(0, CHUNKS)
    tl.store(peak + i_row * n_chunks + o_p, tl.max(tl.reshape(value, [CHUNKS, CHUNK]), 1), mask=o_p < n_chunks)


@triton.jit
def in_top(key, n):
    """Which keys of [ROWS, M], int32, are among the n[ROWS] largest of their row; below 0: none. Ties: lower index.

    Also takes one row [M] and one number n, which is faster: a scalar has no layout to convert to that of the keys.
    """
    return _in_top_from(key, n, n * 0)


@triton.jit
def _beside(x, key):
    """x, one number a row, to be compared with keys."""
    if len(key.shape) == 2:
        x = x[:, None]
    return x


@triton.jit
def _any(x):
    if len(x.shape) == 1:
        x = tl.max(x.to(tl.int32), 0) > 0
    return x


@triton.jit
def _in_top_from(key, n, floor):
    """As `in_top`; floor: a guess, for each row, of a number >= 0 that n keys reach. A wrong guess costs time only.

    Bisection on the bits: at least n keys reach `low` and fewer than n reach `high`, until exactly n reach `low`.
    """
    AXIS: tl.constexpr = len(key.shape) - 1
    high = tl.maximum(tl.max(key, AXIS), 0) + 1
    n_all = tl.sum((key >= 0).to(tl.int32), AXIS)
    n_low = tl.sum((key >= _beside(floor, key)).to(tl.int32), AXIS)
    low = tl.where(n_low >= n, floor, 0)
    n_low = tl.where(n_low >= n, n_low, n_all)
    while _any((n_low > n) & (high - low > 1)):
        middle = low + (high - low) // 2
        n_middle = tl.sum((key >= _beside(middle, key)).to(tl.int32), AXIS)
        up = n_middle >= n
        low, n_low = tl.where(up, middle, low), tl.where(up, n_middle, n_low)
        high = tl.where(up, high, middle)
    taken = key >= _beside(low, key)
    if _any(n_low > n):  # ties at the threshold
        above = key > _beside(low, key)
        room = n - tl.sum(above.to(tl.int32), AXIS)
        tied = taken & (key == _beside(low, key))
        taken = above | (tied & (tl.cumsum(tied.to(tl.int32), AXIS) <= _beside(room, key)))
    return taken


@triton.jit
def _least_peak(key, AXIS: tl.constexpr):
    """The least of the highest keys of each part of a row, parts [x, y] along AXIS; one without a key is left out.

    If there are n parts or more, n keys reach it: a floor for the top n.
    """
    peak = tl.max(key, AXIS)
    return tl.min(tl.where(peak >= 0, peak, INFINITY), 0)


@triton.jit
def write_in_order(p_row, value, taken, m_row, S: tl.constexpr, S_PADDED: tl.constexpr):
    """Store the taken values of each row [ROWS, M], or of one [M], at its first places, and -1 after them."""
    AXIS: tl.constexpr = len(taken.shape) - 1
    place = tl.cumsum(taken.to(tl.int32), AXIS) - 1
    tl.store(_beside(p_row, taken) + place, value, mask=taken & _beside(m_row, taken))
    o_s = tl.arange(0, S_PADDED)
    if AXIS == 1:
        o_s = o_s[None, :]
    m_s = (o_s >= _beside(tl.sum(taken.to(tl.int32), AXIS), taken)) & (o_s < S)
    tl.store(_beside(p_row, taken) + o_s, o_s * 0 - 1, mask=m_s & _beside(m_row, taken))


@triton.jit
def _chunks_kernel(
    peak, chunks, first, start, T, n_groups, g_begin, g_count, n_chunks,
    K: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECTION_BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    S: tl.constexpr, S_PADDED: tl.constexpr, BY_SLOT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The S chunks of the highest peaks of a row, ascending, then -1."""
    i_b, i_k, i_g = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K, tl.program_id(0)
    t, origin = first_tokens(first, start, i_b, g_begin + i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    slot0 = origin // STRIDE if BY_SLOT else origin * 0
    last = slot0 + own_block(t, origin, SELECTION_BLOCK)
    o_p = tl.arange(0, TILE)
    i_row = ((i_b * K + i_k) * g_count + i_g).to(tl.int64)
    value = tl.load(peak + i_row * n_chunks + o_p, mask=o_p < n_chunks, other=-1.0)
    m_p = (t >= 0) & (o_p >= slot0 // CHUNK) & (o_p <= last // CHUNK)
    key = tl.where(m_p, value.to(tl.int32, bitcast=True), -1)
    floor = t * 0
    if TILE >= 2 * S_PADDED:
        floor = _least_peak(tl.reshape(key, [TILE // S_PADDED, S_PADDED]), 0)
    taken = _in_top_from(key, t * 0 + S, floor)
    write_in_order(chunks + i_row * S, o_p, taken, True, S, S_PADDED)


@triton.jit
def _rank_kernel(
    importance, chunks, first, start, chosen, T, n_groups, g_begin, g_count, row, n_chunks,
    K: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECTION_BLOCK: tl.constexpr,
    QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    S: tl.constexpr, S_PADDED: tl.constexpr, BY_SLOT: tl.constexpr, N_INIT: tl.constexpr, N_LOCAL: tl.constexpr,
    SUMMED: tl.constexpr, LISTED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The chosen blocks of a query group, from the TILE chunks that `chunks` names (or all, not LISTED)."""
    i_b, i_k, i_g = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K, tl.program_id(0)
    t, origin = first_tokens(first, start, i_b, g_begin + i_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    own, slot0 = own_block(t, origin, SELECTION_BLOCK), origin // STRIDE
    i_row = ((i_b * K + i_k) * g_count + i_g).to(tl.int64)
    o_x = tl.arange(0, TILE * CHUNK)
    if LISTED:
        i_c = tl.load(chunks + i_row * S + o_x // CHUNK, mask=o_x // CHUNK < S, other=-1)
    else:
        i_c = tl.where(o_x // CHUNK < n_chunks, o_x // CHUNK, -1)
    n_init = tl.minimum(own + 1, N_INIT)
    local = tl.maximum(n_init, own + 1 - N_LOCAL)  # the first of the local blocks
    slot = tl.max_contiguous(tl.multiple_of(tl.maximum(i_c, 0) * CHUNK + o_x % CHUNK, 8), 8)
    o_m = slot - slot0 if BY_SLOT else slot
    free = (i_c >= 0) & (o_m >= n_init) & (o_m < local)
    p_row = importance + i_row * row
    SPAN: tl.constexpr = BLOCK // STRIDE
    if BY_SLOT:  # a chunk lies wholly in the row, written or not
        value = tl.load(p_row + slot)
    else:
        value = _block_values(p_row, slot0, o_m, free, row, SELECTION_BLOCK // STRIDE, SPAN, SUMMED)
    key = tl.where(free, value.to(tl.int32, bitcast=True), -1)
    floor = _least_peak(tl.reshape(key, [TILE, CHUNK]), 1)
    taken = _in_top_from(key, S - n_init - (own + 1 - local), floor)

    p_row = chosen + ((i_b * n_groups + g_begin + i_g) * K + i_k) * S
    place = n_init + tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(p_row + place, o_m, mask=taken)
    # the first blocks before them; after them the local ones, and -1
    o_s = tl.arange(0, S_PADDED)
    n_before = n_init + tl.sum(taken.to(tl.int32), 0)
    o_local = o_s - n_before + local
    forced = tl.where(o_s < n_init, o_s, tl.where(o_local <= own, o_local, -1))
    tl.store(p_row + o_s, forced, mask=(o_s < n_init) | ((o_s >= n_before) & (o_s < S)))
