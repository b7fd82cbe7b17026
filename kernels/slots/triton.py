"""Writing to a cache in Triton: the entries of new tokens, and the mean of the blocks that they complete.

Two tensors are written by one launch, key and value or latent and rotary key: [B, slots, C] each, any strides but 1 in
the last axis, C the channels of an entry. A launch costs more than what it moves.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _modulo(x, n):
    """x mod n in 0..n - 1, of a negative x too."""
    return (x % n + n) % n


@triton.jit
def write_kernel(
    kept0, new0, kept1, new1, position, wanted, T, N,
    kept0_b, kept0_n, new0_b, new0_t, kept1_b, kept1_n, new1_b, new1_t,
    C0: tl.constexpr, C1: tl.constexpr, CP: tl.constexpr, HAS_WANTED: tl.constexpr,
):  # fmt: skip
    """Token i_t of row i_b: kept[b, position mod N] = new[b, t]."""
    i_b, i_t = (tl.program_id(0) // T).to(tl.int64), (tl.program_id(0) % T).to(tl.int64)
    if HAS_WANTED:  # noqa: SIM102 -- decided when the kernel is compiled
        if tl.load(wanted + i_b * T + i_t) == 0:
            return
    slot = _modulo(tl.load(position + i_b * T) + i_t, N)
    o_c = tl.program_id(1) * CP + tl.arange(0, CP)
    b_new = tl.load(new0 + i_b * new0_b + i_t * new0_t + o_c, mask=o_c < C0, other=0.0)
    tl.store(kept0 + i_b * kept0_b + slot * kept0_n + o_c, b_new.to(kept0.dtype.element_ty), mask=o_c < C0)
    if C1 > 0:
        b_new = tl.load(new1 + i_b * new1_b + i_t * new1_t + o_c, mask=o_c < C1, other=0.0)
        tl.store(kept1 + i_b * kept1_b + slot * kept1_n + o_c, b_new.to(kept1.dtype.element_ty), mask=o_c < C1)


@triton.jit
def _mean(kept, kept_n, first, N, o_c, C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_PADDED: tl.constexpr):
    o_l = tl.arange(0, BLOCK_PADDED)
    p_token = kept + ((first + o_l) % N)[:, None] * kept_n + o_c[None, :]
    b_x = tl.load(p_token, mask=(o_l < BLOCK)[:, None] & (o_c < C)[None, :], other=0.0).to(tl.float32)
    return tl.sum(b_x, 0) / BLOCK


@triton.jit
def pool_kernel(
    kept0, pooled0, kept1, pooled1, start, n_new, T, M, N, N_POOLED,
    kept0_b, kept0_n, pooled0_b, pooled0_n, kept1_b, kept1_n, pooled1_b, pooled1_n,
    C0: tl.constexpr, C1: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_PADDED: tl.constexpr,
    STRIDE: tl.constexpr, HAS_N_NEW: tl.constexpr,
):  # fmt: skip
    """The i_m-th block that may end in the new tokens of row i_b, if it does."""
    i_b, i_m = (tl.program_id(0) // M).to(tl.int64), tl.program_id(0) % M
    held = tl.load(start + i_b)
    end = held + T
    if HAS_N_NEW:
        end = held + tl.load(n_new + i_b)
    block = tl.maximum(held + STRIDE - BLOCK, 0) // STRIDE + i_m
    if block * STRIDE + BLOCK > end:
        return
    o_c = tl.program_id(1) * CP + tl.arange(0, CP)
    b_mean = _mean(kept0 + i_b * kept0_b, kept0_n, block * STRIDE, N, o_c, C0, BLOCK, BLOCK_PADDED)
    p_pooled = pooled0 + i_b * pooled0_b + block % N_POOLED * pooled0_n + o_c
    tl.store(p_pooled, b_mean.to(pooled0.dtype.element_ty), mask=o_c < C0)
    if C1 > 0:
        b_mean = _mean(kept1 + i_b * kept1_b, kept1_n, block * STRIDE, N, o_c, C1, BLOCK, BLOCK_PADDED)
        p_pooled = pooled1 + i_b * pooled1_b + block % N_POOLED * pooled1_n + o_c
        tl.store(p_pooled, b_mean.to(pooled1.dtype.element_ty), mask=o_c < C1)
