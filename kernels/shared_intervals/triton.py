"""Attention where every query sees one interval of keys: full, window and compression attention differ in its bounds.

Query t of a document that starts at row index a sees the keys lo(t) <= i < hi(t):

    lo(t) = max(a // s, t - window + 1 if there is a window)
    hi(t) = a // s + max(t - a - l + 1 + s, 0) // s

with s = `stride` and l = `block`. For tokens s = l = 1, so hi(t) = t + 1; for compression, key i is the block in slot
i. Both bounds grow with t. So a block of queries has, between its first and its last tile of keys, some tiles at either
end that need a mask and a body that needs none; and so has a block of keys with its queries. Each kernel runs one loop
over the masked tiles and one over the body.

Layouts: q [B, T, H, D], q_rope [B, T, H, R], k [B, N, K, D], k_rope [B, N, R], v [B, N, K, V], do [B, T, H, V]: any
strides, but 1 in the last axis; o and what a kernel writes are contiguous. lse and delta (the row sums of o * do) are
[B, H, T], so that a tile's are contiguous. DP, RP, VP are the widths padded to powers of two.
Scores are scale * (q . k + q_rope . k_rope); exponentials are taken to base 2; sums are float32. With SOFTCAP a score x
becomes softcap * tanh(x / softcap). With SINKS each head has one more key, of score sinks[h] and value 0: sums begin
with it, so that lse holds it, and what follows from lse in the backward pass is right as it is.
Every tile is read by pointers: Hopper's copy engine (TMA) was not faster once tiles were chosen for both (docs/log.md).
A loop may divide by its own number of turns only if that is never 0. Pipelining computes the addresses of the first
turns before the loop; LLVM then assumes that the number is positive, and loads memory that no turn reads.

Backward: dq by blocks of queries, dk and dv by blocks of keys, each sum in a fixed order (no atomics). The queries that
see a block of keys, of all heads of its group, may be divided among several programs, whose float32 parts are
added afterwards: with few keys, this fills the chip.
"""

import triton
import triton.language as tl

from zoo.kernels.softcap_triton import tanh

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _row_head_tile(i, B, H, n_tiles, HAS_WINDOW: tl.constexpr):
    """Row, head and tile of the i-th program.

    With a window the programs take one row after the other: neighbouring tiles, which read the same keys or queries,
    then run at about the same time and find them in the L2 cache. Without one all rows go tile by tile: tiles of late
    queries, which see most keys, and of early keys, which most queries see, take longest and start first.
    """
    if HAS_WINDOW:
        i_b, i_tile = i // (H * n_tiles), i // H % n_tiles
    else:
        i_b, i_tile = i // H % B, i // (B * H)
    return i_b.to(tl.int64), (i % H).to(tl.int64), i_tile


@triton.jit
def _interval(t, start, window, STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr):
    lo = start // STRIDE
    hi = lo + tl.maximum(t - start - BLOCK + 1 + STRIDE, 0) // STRIDE
    if HAS_WINDOW:
        lo = tl.maximum(lo, t - window + 1)
    return lo, hi


@triton.jit
def _visible(o_n, lo, hi):
    return (o_n >= lo) & (o_n < hi)


@triton.jit
def _load_rows(
    p, i_b, i_h, row, n_rows, stride_b, stride_row, stride_h,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Rows [row, row + ROWS) of one head, zeros from WIDTH up to PADDED; RAGGED: some rows may lie past n_rows."""
    o_r = tl.arange(0, ROWS)
    o_c = tl.arange(0, PADDED)
    p_row = p + i_b * stride_b + i_h * stride_h + row.to(tl.int64) * stride_row
    p_tile = p_row + (o_r[:, None] * stride_row + o_c[None, :])
    if RAGGED:
        return tl.load(p_tile, mask=(row + o_r < n_rows)[:, None] & (o_c < WIDTH)[None, :], other=0.0)
    elif PADDED != WIDTH:
        return tl.load(p_tile, mask=(o_c < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(p_tile)


@triton.jit
def _store_rows(p, row, n_rows, stride, b_x, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    o_r = tl.arange(0, ROWS)
    o_c = tl.arange(0, PADDED)
    p_tile = p + row.to(tl.int64) * stride + (o_r[:, None] * stride + o_c[None, :])
    tl.store(p_tile, b_x.to(p.dtype.element_ty), mask=(row + o_r < n_rows)[:, None] & (o_c < WIDTH)[None, :])


@triton.jit
def _key_tiles(
    t0, p_start, T, window, BM: tl.constexpr, BN: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Bounds of queries [t0, t0 + BM), their first key, and tiles of keys: masked before the body, in it, after it."""
    o_t = tl.minimum(t0 + tl.arange(0, BM), T - 1)
    t1 = tl.minimum(t0 + BM, T) - 1
    if HAS_DOCUMENTS:
        lo, hi = _interval(o_t, tl.load(p_start + o_t), window, STRIDE, BLOCK, HAS_WINDOW)
        lo0, hi0 = _interval(t0, tl.load(p_start + t0), window, STRIDE, BLOCK, HAS_WINDOW)
        lo1, hi1 = _interval(t1, tl.load(p_start + t1), window, STRIDE, BLOCK, HAS_WINDOW)
    else:
        lo, hi = _interval(o_t, o_t * 0, window, STRIDE, BLOCK, HAS_WINDOW)
        lo0, hi0 = _interval(t0, t0 * 0, window, STRIDE, BLOCK, HAS_WINDOW)
        lo1, hi1 = _interval(t1, t1 * 0, window, STRIDE, BLOCK, HAS_WINDOW)
    first = lo0 // BN
    body = tl.cdiv(lo1, BN)
    n_body = tl.maximum(hi0 // BN - body, 0)
    n_after = tl.maximum(tl.cdiv(hi1, BN) - body - n_body, 0)
    return lo, hi, first * BN, body - first, n_body, n_after


@triton.jit
def _scores(
    b_q, b_qr, k, kr, i_b, i_k, n0, N, inner, stride_kb, stride_kn, stride_kh, stride_krb, stride_krn,
    D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Products of queries and keys; with SOFTCAP tanh(inner * product)."""
    b_k = _load_rows(k, i_b, i_k, n0, N, stride_kb, stride_kn, stride_kh, BN, D, DP, MASKED)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if R > 0:
        b_kr = _load_rows(kr, i_b, i_k * 0, n0, N, stride_krb, stride_krn, 0, BN, R, RP, MASKED)
        b_s = tl.dot(b_qr, tl.trans(b_kr), b_s, input_precision=PRECISION)
    if SOFTCAP:
        b_s = tanh(b_s * inner)
    return b_s


@triton.jit
def _factors(scale, softcap, SOFTCAP: tl.constexpr):
    """What scores are multiplied by in the exponent of 2, and what products are multiplied by before their tanh."""
    if SOFTCAP:
        return softcap * _LOG2_E, scale / softcap
    else:
        return scale * _LOG2_E, scale


@triton.jit
def _softmax_step(b_s, b_max, b_sum, scale_log2, MASKED: tl.constexpr):
    """Numerators of a tile, the factor for what was summed before, and the maximum and sum so far."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
    b_shift = b_new
    if MASKED:  # a query may have seen nothing yet: keep exp2 away from inf - inf
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
    b_p = tl.math.exp2(b_s * scale_log2 - b_shift[:, None])
    b_decay = tl.math.exp2(b_max - b_shift)
    return b_p, b_decay, b_new, b_sum * b_decay + tl.sum(b_p, 1)


@triton.jit
def _fwd_step(
    b_acc, b_max, b_sum, b_q, b_qr, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    b_s = _scores(
        b_q, b_qr, k, kr, i_b, i_k, n0, N, inner, stride_kb, stride_kn, stride_kh, stride_krb, stride_krn,
        D, R, DP, RP, BN, PRECISION, SOFTCAP, MASKED,
    )  # fmt: skip
    if MASKED:
        o_n = n0 + tl.arange(0, BN)
        b_s = tl.where(_visible(o_n[None, :], lo[:, None], hi[:, None]), b_s, -float("inf"))
    b_p, b_decay, b_max, b_sum = _softmax_step(b_s, b_max, b_sum, scale_log2, MASKED)
    b_v = _load_rows(v, i_b, i_k, n0, N, stride_vb, stride_vn, stride_vh, BN, V, VP, MASKED)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
    return b_acc, b_max, b_sum


@triton.jit
def _fwd_long_body(
    b_acc, b_max, b_sum, b_q, b_qr, k, kr, v, i_b, i_k, n0, n_tiles, N, scale_log2, inner,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Tiles without a mask, the product with v one tile late: it runs while the next tile's exponentials are computed.

    Forward at T = 65,536, H = 64, d = 128, blocks 32/16 on an H200: 8.6 ms, against 8.9 to 9.5 by `_fwd_step`.
    """
    b_s = _scores(
        b_q, b_qr, k, kr, i_b, i_k, n0, N, inner, stride_kb, stride_kn, stride_kh, stride_krb, stride_krn,
        D, R, DP, RP, BN, PRECISION, SOFTCAP, False,
    )  # fmt: skip
    b_p, b_decay, b_max, b_sum = _softmax_step(b_s, b_max, b_sum, scale_log2, False)
    for _ in range(1, n_tiles):
        b_s = _scores(
            b_q, b_qr, k, kr, i_b, i_k, n0 + BN, N, inner, stride_kb, stride_kn, stride_kh, stride_krb, stride_krn,
            D, R, DP, RP, BN, PRECISION, SOFTCAP, False,
        )  # fmt: skip
        b_v = _load_rows(v, i_b, i_k, n0, N, stride_vb, stride_vn, stride_vh, BN, V, VP, False)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
        b_p, b_decay, b_max, b_sum = _softmax_step(b_s, b_max, b_sum, scale_log2, False)
        n0 += BN
    b_v = _load_rows(v, i_b, i_k, n0, N, stride_vb, stride_vn, stride_vh, BN, V, VP, False)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
    return b_acc, b_max, b_sum


@triton.jit
def _fwd_kernel(
    q, qr, k, kr, v, o, lse, start, sinks, scale, softcap, window, T, N, B, H, G,
    stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    i_b, i_h, i_tile = _row_head_tile(tl.program_id(0), B, H, tl.cdiv(T, BM), HAS_WINDOW)
    i_k = i_h // G
    t0 = (tl.cdiv(T, BM) - 1 - i_tile) * BM
    b_q = _load_rows(q, i_b, i_h, t0, T, stride_qb, stride_qt, stride_qh, BM, D, DP, True)
    b_qr = b_q
    if R > 0:
        b_qr = _load_rows(qr, i_b, i_h, t0, T, stride_qrb, stride_qrt, stride_qrh, BM, R, RP, True)
    lo, hi, first, n_before, n_body, n_after = _key_tiles(
        t0, start + i_b * T, T, window, BM, BN, STRIDE, BLOCK, HAS_WINDOW, HAS_DOCUMENTS
    )
    scale_log2, inner = _factors(scale, softcap, SOFTCAP)
    b_max = tl.full([BM], -float("inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    if SINKS:
        b_max = tl.zeros([BM], tl.float32) + tl.load(sinks + i_h) * _LOG2_E
        b_sum = tl.full([BM], 1.0, tl.float32)
    b_acc = tl.zeros([BM, VP], tl.float32)
    for i in range(0, n_before + n_after):
        n0 = first + (i + tl.where(i < n_before, 0, n_body)) * BN
        b_acc, b_max, b_sum = _fwd_step(
            b_acc, b_max, b_sum, b_q, b_qr, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
            stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
            D, R, V, DP, RP, VP, BN, PRECISION, SOFTCAP, True,
        )  # fmt: skip
    if HAS_WINDOW:  # a handful of tiles
        for i in range(0, n_body):
            n0 = first + (i + n_before) * BN
            b_acc, b_max, b_sum = _fwd_step(
                b_acc, b_max, b_sum, b_q, b_qr, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
                stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
                D, R, V, DP, RP, VP, BN, PRECISION, SOFTCAP, False,
            )  # fmt: skip
    elif n_body > 0:
        b_acc, b_max, b_sum = _fwd_long_body(
            b_acc, b_max, b_sum, b_q, b_qr, k, kr, v, i_b, i_k, first + n_before * BN, n_body, N, scale_log2, inner,
            stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
            D, R, V, DP, RP, VP, BN, PRECISION, SOFTCAP,
        )  # fmt: skip
    b_seen = b_sum > 0
    b_sum = tl.where(b_seen, b_sum, 1.0)
    _store_rows(o + (i_b * T * H + i_h) * V, t0, T, H * V, b_acc / b_sum[:, None], BM, V, VP)
    o_t = t0 + tl.arange(0, BM)
    b_lse = tl.where(b_seen, (b_max + tl.math.log2(b_sum)) * _LN_2, -float("inf"))
    tl.store(lse + (i_b * H + i_h) * T + o_t, b_lse, mask=o_t < T)


@triton.jit
def _dq_step(
    b_dq, b_dqr, b_q, b_qr, b_do, b_lse, b_delta, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    b_k = _load_rows(k, i_b, i_k, n0, N, stride_kb, stride_kn, stride_kh, BN, D, DP, MASKED)
    b_v = _load_rows(v, i_b, i_k, n0, N, stride_vb, stride_vn, stride_vh, BN, V, VP, MASKED)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if R > 0:
        b_kr = _load_rows(kr, i_b, i_k * 0, n0, N, stride_krb, stride_krn, 0, BN, R, RP, MASKED)
        b_s = tl.dot(b_qr, tl.trans(b_kr), b_s, input_precision=PRECISION)
    if SOFTCAP:
        b_s = tanh(b_s * inner)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_p = tl.math.exp2(b_s * scale_log2 - b_lse[:, None])
    if MASKED:
        o_n = n0 + tl.arange(0, BN)
        b_p = tl.where(_visible(o_n[None, :], lo[:, None], hi[:, None]), b_p, 0.0)
    b_ds = b_p * (b_dp - b_delta[:, None])
    if SOFTCAP:
        b_ds *= 1.0 - b_s * b_s  # the slope of tanh
    b_ds = b_ds.to(b_k.dtype)
    b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    if R > 0:
        b_dqr = tl.dot(b_ds, b_kr, b_dqr, input_precision=PRECISION)
    return b_dq, b_dqr


@triton.jit
def _dq_kernel(
    q, qr, k, kr, v, o, lse, start, do, dlse, delta, dq, dqr, scale, softcap, window, T, N, B, H, G,
    stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    stride_dob, stride_dot, stride_doh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, HAS_DLSE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of q and q_rope; also delta, for the kernel of the keys, since do is read here anyway."""
    i_b, i_h, i_tile = _row_head_tile(tl.program_id(0), B, H, tl.cdiv(T, BM), HAS_WINDOW)
    i_k = i_h // G
    t0 = (tl.cdiv(T, BM) - 1 - i_tile) * BM
    b_q = _load_rows(q, i_b, i_h, t0, T, stride_qb, stride_qt, stride_qh, BM, D, DP, True)
    b_qr = b_q
    if R > 0:
        b_qr = _load_rows(qr, i_b, i_h, t0, T, stride_qrb, stride_qrt, stride_qrh, BM, R, RP, True)
    b_do = _load_rows(do, i_b, i_h, t0, T, stride_dob, stride_dot, stride_doh, BM, V, VP, True)
    b_o = _load_rows(o, i_b, i_h, t0, T, T * H * V, H * V, V, BM, V, VP, True)
    o_t = t0 + tl.arange(0, BM)
    o_row = (i_b * H + i_h) * T + o_t
    b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)
    if HAS_DLSE:
        b_delta -= tl.load(dlse + o_row, mask=o_t < T, other=0.0)
    tl.store(delta + o_row, b_delta, mask=o_t < T)
    b_lse = tl.load(lse + o_row, mask=o_t < T, other=0.0) * _LOG2_E
    b_lse = tl.where(b_lse == -float("inf"), float("inf"), b_lse)  # a query that sees nothing: all probabilities are 0
    lo, hi, first, n_before, n_body, n_after = _key_tiles(
        t0, start + i_b * T, T, window, BM, BN, STRIDE, BLOCK, HAS_WINDOW, HAS_DOCUMENTS
    )
    b_dq = tl.zeros([BM, DP], tl.float32)
    b_dqr = tl.zeros([BM, RP], tl.float32)
    scale_log2, inner = _factors(scale, softcap, SOFTCAP)
    for i in range(0, n_before + n_after):
        n0 = first + (i + tl.where(i < n_before, 0, n_body)) * BN
        b_dq, b_dqr = _dq_step(
            b_dq, b_dqr, b_q, b_qr, b_do, b_lse, b_delta, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
            stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
            D, R, V, DP, RP, VP, BN, PRECISION, SOFTCAP, True,
        )  # fmt: skip
    for i in range(0, n_body):
        n0 = first + (i + n_before) * BN
        b_dq, b_dqr = _dq_step(
            b_dq, b_dqr, b_q, b_qr, b_do, b_lse, b_delta, k, kr, v, i_b, i_k, n0, lo, hi, N, scale_log2, inner,
            stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
            D, R, V, DP, RP, VP, BN, PRECISION, SOFTCAP, False,
        )  # fmt: skip
    _store_rows(dq + (i_b * T * H + i_h) * D, t0, T, H * D, b_dq * scale, BM, D, DP)
    if R > 0:
        _store_rows(dqr + (i_b * T * H + i_h) * R, t0, T, H * R, b_dqr * scale, BM, R, RP)


@triton.jit
def _query_tiles(
    n0, p_start, T, N, window, BM: tl.constexpr, BN: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Queries that see keys of [n0, n0 + BN): the first; tiles that are masked before the body, in it, masked after."""
    n1 = tl.minimum(n0 + BN, N)
    t_first = tl.minimum(n0 * STRIDE + BLOCK - 1, T)  # sees key n0; with documents, no query before this does
    t_body = tl.minimum((n1 - 1) * STRIDE + BLOCK - 1, T)  # the first to see all keys
    t_body_end, t_end = T, T
    if HAS_WINDOW:
        t_body_end = tl.minimum(T, n0 + window)
        t_end = tl.minimum(T, n1 - 1 + window)
    if HAS_DOCUMENTS:  # the end of the last document with a key here, found to within T / 1024 tokens; all is masked
        step = tl.cdiv(T, 1024)
        o_t = tl.arange(0, 1024) * step
        b_before = (o_t < T) & (tl.load(p_start + o_t, mask=o_t < T, other=0) // STRIDE < n1)
        t_end = tl.minimum(t_end, tl.sum(b_before.to(tl.int32), 0) * step)
        t_body, t_body_end = t_end, t_end
    t_first = t_first // BM * BM  # aligned, so that statistics are read in pairs
    n_before = tl.cdiv(tl.maximum(t_body - t_first, 0), BM)
    body = t_first + n_before * BM
    n_body = tl.maximum(t_body_end - body, 0) // BM
    n_after = tl.cdiv(tl.maximum(t_end - body - n_body * BM, 0), BM)
    return t_first, n_before, n_body, n_after


@triton.jit
def _dkv_step(
    b_dk, b_dkr, b_dv, b_k, b_kr, b_v, q, qr, do, p_lse, p_delta, p_start, i_b, i_h, t0, o_n, T, window, scale_log2,
    inner,
    stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh, stride_dob, stride_dot, stride_doh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    BM: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Scores are held transposed, [keys, queries], so that the products into dk and dv take them as they are."""
    o_t = t0 + tl.arange(0, BM)
    b_q = _load_rows(q, i_b, i_h, t0, T, stride_qb, stride_qt, stride_qh, BM, D, DP, MASKED)
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
    if R > 0:
        b_qr = _load_rows(qr, i_b, i_h, t0, T, stride_qrb, stride_qrt, stride_qrh, BM, R, RP, MASKED)
        b_s = tl.dot(b_kr, tl.trans(b_qr), b_s, input_precision=PRECISION)
    if MASKED:
        b_lse = tl.load(p_lse + o_t, mask=o_t < T, other=float("inf")) * _LOG2_E
        b_lse = tl.where(b_lse == -float("inf"), float("inf"), b_lse)
        b_delta = tl.load(p_delta + o_t, mask=o_t < T, other=0.0)
    else:
        b_lse = tl.load(p_lse + o_t) * _LOG2_E
        b_delta = tl.load(p_delta + o_t)
    b_do = _load_rows(do, i_b, i_h, t0, T, stride_dob, stride_dot, stride_doh, BM, V, VP, MASKED)
    b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    if SOFTCAP:
        b_s = tanh(b_s * inner)
    b_p = tl.math.exp2(b_s * scale_log2 - b_lse[None, :])
    if MASKED:
        b_start = o_t * 0
        if HAS_DOCUMENTS:
            b_start = tl.load(p_start + o_t, mask=o_t < T, other=0)
        lo, hi = _interval(o_t, b_start, window, STRIDE, BLOCK, HAS_WINDOW)
        b_p = tl.where(_visible(o_n[:, None], lo[None, :], hi[None, :]), b_p, 0.0)
    b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    b_ds = b_p * (b_dp - b_delta[None, :])
    if SOFTCAP:
        b_ds *= 1.0 - b_s * b_s
    b_ds = b_ds.to(b_q.dtype)
    b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    if R > 0:
        b_dkr = tl.dot(b_ds, b_qr, b_dkr, input_precision=PRECISION)
    return b_dk, b_dkr, b_dv


@triton.jit
def _next(i_h, j, per_head):
    """The next tile of a head, or the first of the next head."""
    j += 1
    return i_h + (j == per_head).to(i_h.dtype), tl.where(j == per_head, 0, j)


@triton.jit
def _dkv_kernel(
    q, qr, k, kr, v, lse, start, do, delta, dk, dkr, dv, scale, softcap, window, T, N, B, H, G, PARTS,
    stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh,
    stride_kb, stride_kn, stride_kh, stride_krb, stride_krn, stride_vb, stride_vn, stride_vh,
    stride_dob, stride_dot, stride_doh,
    D: tl.constexpr, R: tl.constexpr, V: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, VP: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One of PARTS equal shares of the gradients of a block of keys.

    dk [PARTS, B, N, K, D], dv [PARTS, B, N, K, V], dkr [PARTS, K, B, N, R].
    """
    K = H // G
    i_part = tl.program_id(0) % PARTS
    i_b, i_k, i_tile = _row_head_tile(tl.program_id(0) // PARTS, B, K, tl.cdiv(N, BN), HAS_WINDOW)
    n0 = i_tile * BN
    b_k = _load_rows(k, i_b, i_k, n0, N, stride_kb, stride_kn, stride_kh, BN, D, DP, True)
    b_v = _load_rows(v, i_b, i_k, n0, N, stride_vb, stride_vn, stride_vh, BN, V, VP, True)
    b_kr = b_k
    if R > 0:
        b_kr = _load_rows(kr, i_b, i_k * 0, n0, N, stride_krb, stride_krn, 0, BN, R, RP, True)
    p_start = start + i_b * T
    t_first, n_before, n_body, n_after = _query_tiles(
        n0, p_start, T, N, window, BM, BN, STRIDE, BLOCK, HAS_WINDOW, HAS_DOCUMENTS
    )
    o_n = n0 + tl.arange(0, BN)
    b_dk = tl.zeros([BN, DP], tl.float32)
    b_dkr = tl.zeros([BN, RP], tl.float32)
    b_dv = tl.zeros([BN, VP], tl.float32)
    scale_log2, inner = _factors(scale, softcap, SOFTCAP)
    n_masked = n_before + n_after
    per_head = tl.maximum(n_masked, 1)  # not 0: see above
    i = n_masked * G * i_part // PARTS
    i_h, j = i_k * G + i // per_head, i % per_head
    for _ in range(i, n_masked * G * (i_part + 1) // PARTS):
        t0 = t_first + (j + tl.where(j < n_before, 0, n_body)) * BM
        o_row = (i_b * H + i_h) * T
        b_dk, b_dkr, b_dv = _dkv_step(
            b_dk, b_dkr, b_dv, b_k, b_kr, b_v, q, qr, do, lse + o_row, delta + o_row, p_start, i_b, i_h, t0, o_n, T,
            window, scale_log2, inner,
            stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh, stride_dob, stride_dot, stride_doh,
            D, R, V, DP, RP, VP, STRIDE, BLOCK, HAS_WINDOW, HAS_DOCUMENTS, BM, PRECISION, SOFTCAP, True,
        )  # fmt: skip
        i_h, j = _next(i_h, j, per_head)
    if not HAS_DOCUMENTS:
        per_head = tl.maximum(n_body, 1)
        i = n_body * G * i_part // PARTS
        i_h, j = i_k * G + i // per_head, i % per_head
        for _ in range(i, n_body * G * (i_part + 1) // PARTS):
            # Late queries first: programs that read the same queries then begin with the same ones.
            t0 = t_first + (n_before + n_body - 1 - j) * BM
            o_row = (i_b * H + i_h) * T
            b_dk, b_dkr, b_dv = _dkv_step(
                b_dk, b_dkr, b_dv, b_k, b_kr, b_v, q, qr, do, lse + o_row, delta + o_row, p_start, i_b, i_h, t0, o_n, T,
                window, scale_log2, inner,
                stride_qb, stride_qt, stride_qh, stride_qrb, stride_qrt, stride_qrh, stride_dob, stride_dot, stride_doh,
                D, R, V, DP, RP, VP, STRIDE, BLOCK, HAS_WINDOW, HAS_DOCUMENTS, BM, PRECISION, SOFTCAP, False,
            )  # fmt: skip
            i_h, j = _next(i_h, j, per_head)
    i_pb = i_part.to(tl.int64) * B + i_b
    _store_rows(dk + (i_pb * N * K + i_k) * D, n0, N, K * D, b_dk * scale, BN, D, DP)
    _store_rows(dv + (i_pb * N * K + i_k) * V, n0, N, K * V, b_dv, BN, V, VP)
    if R > 0:
        _store_rows(dkr + ((i_part * K + i_k) * B + i_b) * N * R, n0, N, R, b_dkr * scale, BN, R, RP)


@triton.jit
def _sum_parts_kernel(
    part_dk, part_dkr, part_dv, dk, dkr, dv, n_k, n_kr, n_v, PARTS, ROPE_PARTS, SIZE: tl.constexpr
):  # fmt: skip
    """dk, dkr and dv, of so many numbers each, as the sums of their parts; SIZE numbers of one of them a program."""
    i, n_tiles_k, n_tiles_v = tl.program_id(0), tl.cdiv(n_k, SIZE), tl.cdiv(n_v, SIZE)
    if i < n_tiles_k:
        _sum_parts(part_dk, dk, i, n_k, PARTS, SIZE)
    elif i < n_tiles_k + n_tiles_v:
        _sum_parts(part_dv, dv, i - n_tiles_k, n_v, PARTS, SIZE)
    else:
        _sum_parts(part_dkr, dkr, i - n_tiles_k - n_tiles_v, n_kr, ROPE_PARTS, SIZE)


@triton.jit
def _sum_parts(parts, out, i, n, n_parts, SIZE: tl.constexpr):
    offset = i.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    b_sum = tl.zeros([SIZE], tl.float32)
    p_part = parts + offset
    for _ in range(n_parts):
        b_sum += tl.load(p_part, mask=offset < n, other=0.0)
        p_part += n
    tl.store(out + offset, b_sum.to(out.dtype.element_ty), mask=offset < n)
