"""Addition and norm in Triton: each tensor is read once and written once, forward and backward.

Rows of C numbers, ROWS to a program; CP is C rounded up to a power of two. With s = x + delta and
r = 1 / sqrt(mean(s^2) + eps), y = s r w. Backward, from dy and the gradient ds of s by everything that follows:

    dx = d delta = ds + r (w dy - s r mean(w dy s r)),    dw = sum over rows of dy s r

What is kept of s has the dtype of y. Its rounding error, relative 2^-9 in bfloat16, is as large as that of y itself.
Each program adds up the dw of its rows in their order; those parts are then added in a fixed order as well.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_norm_fwd_kernel(
    x, delta, weight, total, out, kept, rms, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, COPY: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ADD: whether there is a delta; without one, total is x, which stays as it is.  COPY: write s to `kept` too."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, CP)
    offset = o_row[:, None] * C + o_c[None, :]
    mask = (o_row < n_rows)[:, None] & (o_c < C)[None, :]
    b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        b_x += tl.load(delta + offset, mask=mask, other=0.0).to(tl.float32)
        b_x = b_x.to(total.dtype.element_ty)
        tl.store(total + offset, b_x, mask=mask)
    b_s = b_x.to(tl.float32)
    b_r = 1.0 / tl.sqrt(tl.sum(b_s * b_s, 1) / C + eps)
    b_w = tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    tl.store(out + offset, (b_s * b_r[:, None] * b_w[None, :]).to(out.dtype.element_ty), mask=mask)
    if COPY:
        tl.store(kept + offset, b_s.to(kept.dtype.element_ty), mask=mask)
    if KEEP:
        tl.store(rms + o_row, b_r, mask=o_row < n_rows)


@triton.jit
def _add_norm_bwd_kernel(
    dy, ds, kept, rms, weight, dx, ddelta, part, n_rows,
    C: tl.constexpr, CP: tl.constexpr, HAS_DS: tl.constexpr, TWO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx, ddelta if it is of another dtype (TWO), and one part of dw, part [programs, C]."""
    o_c = tl.arange(0, CP)
    b_w = tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_dw = tl.zeros([CP], tl.float32)
    for i in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        o_row = tl.full([1], 0, tl.int64) + i * ROWS + tl.arange(0, ROWS)
        offset = o_row[:, None] * C + o_c[None, :]
        mask = (o_row < n_rows)[:, None] & (o_c < C)[None, :]
        b_r = tl.load(rms + o_row, mask=o_row < n_rows, other=0.0)
        b_normed = tl.load(kept + offset, mask=mask, other=0.0).to(tl.float32) * b_r[:, None]
        b_dy = tl.load(dy + offset, mask=mask, other=0.0).to(tl.float32)
        b_dn = b_dy * b_w[None, :]
        b_mean = tl.sum(b_dn * b_normed, 1) / C
        b_dx = (b_dn - b_normed * b_mean[:, None]) * b_r[:, None]
        if HAS_DS:
            b_dx += tl.load(ds + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + offset, b_dx.to(dx.dtype.element_ty), mask=mask)
        if TWO:
            tl.store(ddelta + offset, b_dx.to(ddelta.dtype.element_ty), mask=mask)
        b_dw += tl.sum(b_dy * b_normed, 0)
    tl.store(part + tl.program_id(0) * C + o_c, b_dw, mask=o_c < C)
