"""The choice of blocks in Triton: importances of a run of query groups, then the top n of each row.

Kernel 1 scores pooled keys against the first query of each group, turned around: S^T = K Q^T with one column per
(head, group), heads outermost, so that the sum over the heads of a group stays inside a thread. It writes
importances [B, K, groups of the run, N] to a workspace of bounded size; runs follow one another, so memory grows with
N and not with T x N. Kernel 2 sums the compression blocks that overlap a selection block, with their weights, takes
the forced ones, and finds the exact n-th largest of the others by bisection on its bits: floats of one sign order as
the integers of their bits do. Ties then go to the lower index by rank, and a prefix sum writes the chosen in order.
A row longer than one tile keeps n candidates of each tile, in order, for a last pass.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from zoo.kernels.documents import Documents, n_groups
from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.registration import opaque

WORKSPACE_BYTES = 1 << 28
MIN_RUN = 1024  # groups, so that a run fills the chip
MAX_TILE = 4096  # selection blocks ranked at once
FORCED = tl.constexpr(0x7F800000)  # the bits of +inf: above every importance


@triton.jit
def _first_tokens(first, start, i_b, o_g, T, n_groups, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr):
    """Row index of the first token of each group (-1: unused), and of its document."""
    if DOCUMENTS:
        t = tl.load(first + i_b * n_groups + o_g, mask=o_g < n_groups, other=-1)
        origin = tl.load(start + i_b * T + tl.maximum(t, 0))
    else:
        t = tl.where(o_g < n_groups, o_g * QUERY_GROUP, -1)
        origin = tl.zeros_like(t)
    return t, origin


@triton.jit
def _n_visible(t, origin, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """How many compression blocks end at or before t."""
    past = t - origin - BLOCK + 1
    return tl.where((t >= 0) & (past >= 0), past // STRIDE + 1, 0)


@triton.jit
def _importance_kernel(
    q, k, q_rope, k_rope, lse, first, start, importance,
    q_b, q_t, q_h, k_b, k_n, k_h, qr_b, qr_t, qr_h, kr_b, kr_n,
    T, N, n_groups, g_begin, g_count, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, QUERY_GROUP: tl.constexpr, DOCUMENTS: tl.constexpr,
    GROUPS: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    i_g = (tl.num_programs(0) - 1 - tl.program_id(0)) * GROUPS  # the longest rows first
    i_b, i_k = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K
    o_g = i_g + tl.arange(0, GROUPS)
    t, origin = _first_tokens(first, start, i_b, g_begin + o_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    n_visible = tl.where(o_g < g_count, _n_visible(t, origin, BLOCK, STRIDE), 0)
    slot0 = origin // STRIDE
    low = tl.min(tl.where(n_visible > 0, slot0, N), 0)
    high = tl.max(tl.where(n_visible > 0, slot0 + n_visible, 0), 0)

    o_c = tl.arange(0, HEADS * GROUPS)
    o_h = o_c // GROUPS
    t_c, _ = _first_tokens(first, start, i_b, g_begin + i_g + o_c % GROUPS, T, n_groups, QUERY_GROUP, DOCUMENTS)
    t_c = tl.maximum(t_c, 0).to(tl.int64)
    o_d, o_e = tl.arange(0, DP), tl.arange(0, RP)
    p_q = q + i_b * q_b + t_c[:, None] * q_t + i_k * G * q_h + o_d[None, :]
    p_qr = q_rope + i_b * qr_b + t_c[:, None] * qr_t + i_k * G * qr_h + o_e[None, :]
    p_lse = lse + (i_b * T + t_c) * (K * G) + i_k * G
    ONE_STEP: tl.constexpr = G <= HEADS
    if ONE_STEP:
        b_q = tl.load(p_q + o_h[:, None] * q_h, mask=(o_h[:, None] < G) & (o_d[None, :] < D), other=0.0)
        b_lse = tl.load(p_lse + o_h, mask=o_h < G, other=float("inf")) * 1.4426950408889634
        if R > 0:
            b_qr = tl.load(p_qr + o_h[:, None] * qr_h, mask=(o_h[:, None] < G) & (o_e[None, :] < R), other=0.0)
    for i_n in range(low // KEYS * KEYS, high, KEYS):
        o_n = i_n + tl.arange(0, KEYS)
        o_n64 = tl.minimum(o_n, N - 1).to(tl.int64)[:, None]
        b_k = tl.load(k + i_b * k_b + i_k * k_h + o_n64 * k_n + o_d[None, :], mask=o_d[None, :] < D, other=0.0)
        if R > 0:
            b_kr = tl.load(k_rope + i_b * kr_b + o_n64 * kr_n + o_e[None, :], mask=o_e[None, :] < R, other=0.0)
        total = tl.zeros([KEYS, GROUPS], tl.float32)
        for h0 in tl.static_range(0, G, HEADS):
            if not ONE_STEP:
                m_h = h0 + o_h < G
                b_q = tl.load(p_q + (h0 + o_h)[:, None] * q_h, mask=m_h[:, None] & (o_d[None, :] < D), other=0.0)
                b_lse = tl.load(p_lse + h0 + o_h, mask=m_h, other=float("inf")) * 1.4426950408889634
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
            if R > 0:
                if not ONE_STEP:
                    b_qr = tl.load(p_qr + (h0 + o_h)[:, None] * qr_h, mask=m_h[:, None] & (o_e[None, :] < R), other=0.0)
                b_s = tl.dot(b_kr, tl.trans(b_qr), b_s, input_precision="ieee")
            b_p = tl.exp2(b_s * scale_log2 - b_lse[None, :])
            total += tl.sum(tl.reshape(b_p, [KEYS, HEADS, GROUPS]), 1)
        seen = (o_n[:, None] >= slot0[None, :]) & (o_n[:, None] < (slot0 + n_visible)[None, :])
        p_out = importance + ((i_b * K + i_k) * g_count + o_g).to(tl.int64)[None, :] * N + o_n[:, None]
        tl.store(p_out, total, mask=seen)  # where it is not seen, the other kernel does not look


@triton.jit
def _in_top(key, n):
    """Which keys of [ROWS, M], int32, are among the n[ROWS] largest of their row; below 0: none. Ties: lower index.

    Bisection on the bits, kept where at least n keys reach `low` and fewer than n reach `high`, until n do exactly.
    """
    low = n * 0
    high = tl.maximum(tl.max(key, 1), 0) + 1
    n_low = tl.sum((key >= 0).to(tl.int32), 1)
    while tl.max(((n_low > n) & (high - low > 1)).to(tl.int32), 0) > 0:
        middle = low + (high - low) // 2
        n_middle = tl.sum((key >= middle[:, None]).to(tl.int32), 1)
        up = n_middle >= n
        low, n_low = tl.where(up, middle, low), tl.where(up, n_middle, n_low)
        high = tl.where(up, high, middle)
    taken = key >= low[:, None]
    if tl.max(n_low - n, 0) > 0:  # ties at the threshold
        above = key > low[:, None]
        room = n - tl.sum(above.to(tl.int32), 1)
        taken = above | (taken & (tl.cumsum((taken & (key == low[:, None])).to(tl.int32), 1) <= room[:, None]))
    return taken


@triton.jit
def _write_in_order(p_row, value, taken, m_row, S: tl.constexpr, S_PADDED: tl.constexpr):
    """Store the taken values of each row at its first places, and -1 after them."""
    place = tl.cumsum(taken.to(tl.int32), 1) - 1
    tl.store(p_row[:, None] + place, value, mask=taken & m_row[:, None])
    o_s = tl.arange(0, S_PADDED)[None, :]
    n_taken = tl.sum(taken.to(tl.int32), 1)[:, None]
    tl.store(
        p_row[:, None] + o_s, tl.full([1, S_PADDED], -1, tl.int32), mask=m_row[:, None] & (o_s >= n_taken) & (o_s < S)
    )


@triton.jit
def _rank_kernel(
    importance, first, start, chosen, best_key, best_index,
    T, N, n_groups, g_begin, g_count, n_tiles,
    K: tl.constexpr, S: tl.constexpr, S_PADDED: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    SELECTION_BLOCK: tl.constexpr, N_INIT: tl.constexpr, N_LOCAL: tl.constexpr, QUERY_GROUP: tl.constexpr,
    DOCUMENTS: tl.constexpr, ONE_TILE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    i_b, i_k = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K
    o_g = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_g = (o_g < g_count) & (g_begin + o_g < n_groups)
    t, origin = _first_tokens(first, start, i_b, g_begin + o_g, T, n_groups, QUERY_GROUP, DOCUMENTS)
    n_visible = _n_visible(t, origin, BLOCK, STRIDE)
    o_m = tl.program_id(2) * TILE + tl.arange(0, TILE)
    # p_slc of block m: its PIECES compression blocks, and those before it that reach into it
    PIECES: tl.constexpr = SELECTION_BLOCK // STRIDE
    SPAN: tl.constexpr = BLOCK // STRIDE
    p_row = (importance + ((i_b * K + i_k) * g_count + o_g).to(tl.int64) * N + origin // STRIDE)[:, None]
    m_row = tl.where(m_g, n_visible, 0)[:, None]
    o_n = tl.program_id(2) * TILE * PIECES + tl.arange(0, TILE * PIECES)
    value = tl.load(p_row + o_n[None, :], mask=o_n[None, :] < m_row, other=0.0)
    if PIECES > 1:
        weight = tl.minimum(PIECES - o_n % PIECES, SPAN).to(tl.float32)
        value = tl.sum(tl.reshape(value * weight[None, :], [ROWS, TILE, PIECES]), 2)
    for before in tl.static_range(1, SPAN):
        o_before = (o_m * PIECES - before)[None, :]
        seen = (o_before >= 0) & (o_before < m_row)
        value += min(PIECES, SPAN - before) * tl.load(p_row + o_before, mask=seen, other=0.0)
    # NaN counts as nothing and inf as much: their bits would break the order, and with it the bound of n places.
    value = tl.minimum(tl.where(value >= 0, value, 0.0), 3e38)
    own = tl.where(t >= 0, (t - origin) // SELECTION_BLOCK, -1)[:, None]
    candidate = o_m[None, :] <= own
    forced = candidate & ((o_m[None, :] < N_INIT) | (o_m[None, :] > own - N_LOCAL))
    key = tl.where(candidate & (forced == 0), value.to(tl.int32, bitcast=True), -1)
    taken = forced | _in_top(key, S - tl.sum(forced.to(tl.int32), 1))
    index = tl.zeros([ROWS, TILE], tl.int32) + o_m[None, :]
    o_row = (i_b * n_groups + g_begin + o_g) * K + i_k
    if ONE_TILE:
        _write_in_order(chosen + o_row * S, index, taken, m_g, S, S_PADDED)
    else:
        o_best = (((i_b * K + i_k) * g_count + o_g).to(tl.int64) * n_tiles + tl.program_id(2)) * S
        key = tl.where(forced, FORCED, key)
        _write_in_order(best_key + o_best, key, taken, m_g, S, S_PADDED)
        _write_in_order(best_index + o_best, index, taken, m_g, S, S_PADDED)


@triton.jit
def _rank_best_kernel(
    best_key, best_index, chosen, n_groups, g_begin, g_count, n_best,
    K: tl.constexpr, S: tl.constexpr, S_PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The top n of the candidates that the tiles of a row have kept."""
    i_b, i_k, i_g = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K, tl.program_id(0)
    o_c = tl.arange(0, TILE)[None, :]
    o_best = ((i_b * K + i_k) * g_count + i_g) * n_best
    key = tl.load(best_key + o_best + o_c, mask=o_c < n_best, other=-1)
    index = tl.load(best_index + o_best + o_c, mask=o_c < n_best, other=-1)
    p_row = chosen + ((i_b * n_groups + g_begin + i_g) * K + i_k) * S + tl.zeros([1], tl.int64)
    _write_in_order(p_row, index, _in_top(key, tl.full([1], S, tl.int32)), tl.full([1], True, tl.int1), S, S_PADDED)


def importance_tiles(G: int, row_bytes: int) -> list[dict]:
    """128 columns of (head, group), 64 where a row of a query is long; more heads than fit take several steps.

    Then one for small shared memory.
    """
    heads = min(16 if row_bytes <= 256 else 8, next_power_of_2(G))
    groups = max(8, (128 if row_bytes <= 256 else 64) // heads)
    small = min(2, heads)
    return [
        dict(HEADS=heads, GROUPS=groups, KEYS=64, num_warps=4, num_stages=2 if heads >= G else 1),
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


def _choose(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    first: torch.Tensor | None, start: torch.Tensor | None, count: int, sizes: list[int], scale: float,
) -> torch.Tensor:  # fmt: skip
    q, k, q_rope, k_rope = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (q, k, q_rope, k_rope))
    block, stride, selection_block, S, n_init, n_local, query_group = sizes
    B, T, H, D = q.shape
    N, K = k.shape[1:3]
    R = q_rope.shape[-1] if q_rope is not None else 0
    G = H // K
    chosen = torch.empty(B, count, K, S, device=q.device, dtype=torch.int32)
    run = min(count, max(MIN_RUN, WORKSPACE_BYTES // (4 * B * K * N)))
    importance = torch.empty(B * K * run * N, device=q.device, dtype=torch.float32)
    lse = lse.contiguous()
    tiles = importance_tiles(G, next_power_of_2(D) * q.element_size())
    widths = dict(G=G, D=D, DP=max(16, next_power_of_2(D)), R=R, RP=max(16, next_power_of_2(R)))
    shared = dict(K=K, BLOCK=block, STRIDE=stride, QUERY_GROUP=query_group, DOCUMENTS=first is not None)
    for g in range(0, count, run):
        n = min(run, count - g)
        arguments = (
            q, k, q if q_rope is None else q_rope, k_rope, lse, first, start, importance,
            *q.stride()[:3], *k.stride()[:3], *(q_rope.stride()[:3] if R else (0, 0, 0)),
            *(k_rope.stride()[:2] if R else (0, 0)), T, N, count, g, n, scale * math.log2(math.e),
        )  # fmt: skip
        launch(
            _importance_kernel, lambda tile, n=n: (cdiv(n, tile["GROUPS"]), B * K), arguments,
            {**widths, **shared}, tiles, q.device,
        )  # fmt: skip
        last_token = T if first is not None else min(T, (g + n) * query_group)
        _rank(importance, first, start, chosen, T, N, g, n, -(-last_token // selection_block), n_init, n_local,
              selection_block, shared)  # fmt: skip
    return chosen


def _choose_fake(q, k, lse, q_rope, k_rope, first, start, count, sizes, scale):
    return q.new_empty(q.shape[0], count, k.shape[2], sizes[3], dtype=torch.int32)


def rank_tile(tile: int) -> tuple[int, int]:
    """Rows and warps of a program that ranks rows of `tile` blocks: one warp for up to 1,024."""
    return max(1, 512 // tile), max(1, tile // 1024)


def _rank(importance, first, start, chosen, T, N, g, n, n_blocks, n_init, n_local, selection_block, shared):
    """The top n of groups g to g + n, whose rows have at most `n_blocks` blocks."""
    B, count, K, S = chosen.shape
    s_padded = next_power_of_2(S)
    tile = min(MAX_TILE, max(128, next_power_of_2(n_blocks)))
    n_tiles = cdiv(n_blocks, tile)
    best = torch.empty(2, B * K * n * n_tiles * S if n_tiles > 1 else 0, device=chosen.device, dtype=torch.int32)
    rows, num_warps = rank_tile(tile)
    grid = (cdiv(n, rows), B * K, n_tiles)
    arguments = importance, first, start, chosen, best[0], best[1], T, N, count, g, n, n_tiles
    constants = dict(S=S, S_PADDED=s_padded, SELECTION_BLOCK=selection_block, N_INIT=n_init, N_LOCAL=n_local)
    tiles = [dict(ONE_TILE=n_tiles == 1, ROWS=rows, TILE=tile, num_warps=num_warps)]
    launch(_rank_kernel, lambda tile: grid, arguments, {**constants, **shared}, tiles, chosen.device)
    if n_tiles > 1:
        arguments = best[0], best[1], chosen, count, g, n, n_tiles * S
        constants = dict(K=K, S=S, S_PADDED=s_padded)
        tiles = [dict(TILE=next_power_of_2(n_tiles * S))]
        launch(_rank_best_kernel, lambda tile: (n, B * K), arguments, constants, tiles, chosen.device)


_choose_op = opaque("choose_blocks", _choose, _choose_fake)
