"""The cut in Triton: each piece is read once and written once, forward and backward.

One launch a piece moves its rows, (token, head), from the product to memory of its own, or in the backward pass from
the gradients of its readers to its place in the gradient of the product. The first 2 R channels of a row are rotated on
the way, back by the negative angle. Sums of gradients are float32, and rounded once. Source and destination may be
the same rows: then only their rotated channels are moved.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _split_kernel(
    x, x2, x3, out, cos, sin, n_rows, T, H, x_b, x_t, x_h, out_b, out_t, out_h, table_b,
    R: tl.constexpr, RP: tl.constexpr, REST: tl.constexpr, RESTP: tl.constexpr, BACK: tl.constexpr,
    N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """R pairs of channels are rotated, the REST after them copied; RP and RESTP: rounded up to powers of two.

    N: of x, x2 and x3, how many are added up.
    """
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < n_rows
    i_token, i_h = o_row // H, o_row % H
    i_b, i_t = i_token // T, i_token % T
    o_x = (i_b * x_b + i_t * x_t + i_h * x_h)[:, None]
    p_out = out + (i_b * out_b + i_t * out_t + i_h * out_h)[:, None]
    if R > 0:
        o_c = tl.arange(0, RP)[None, :]
        mask = m_row[:, None] & (o_c < R)
        p_table = (i_b * table_b + i_t * R)[:, None] + o_c
        b_cos, b_sin = tl.load(cos + p_table, mask=mask, other=0.0), tl.load(sin + p_table, mask=mask, other=0.0)
        if BACK:
            b_sin = -b_sin
        b_left = _sum(x, x2, x3, o_x + o_c, mask, N).to(tl.float32)
        b_right = _sum(x, x2, x3, o_x + R + o_c, mask, N).to(tl.float32)
        tl.store(p_out + o_c, (b_left * b_cos - b_right * b_sin).to(out.dtype.element_ty), mask=mask)
        tl.store(p_out + R + o_c, (b_right * b_cos + b_left * b_sin).to(out.dtype.element_ty), mask=mask)
    if REST > 0:
        o_d = 2 * R + tl.arange(0, RESTP)[None, :]
        mask_rest = m_row[:, None] & (o_d < 2 * R + REST)
        b_rest = _sum(x, x2, x3, o_x + o_d, mask_rest, N)
        tl.store(p_out + o_d, b_rest.to(out.dtype.element_ty), mask=mask_rest)


@triton.jit
def _sum(x, x2, x3, o_x, mask, N: tl.constexpr):
    total = tl.load(x + o_x, mask=mask, other=0.0)
    if N > 1:
        total = total.to(tl.float32) + tl.load(x2 + o_x, mask=mask, other=0.0).to(tl.float32)
    if N > 2:
        total += tl.load(x3 + o_x, mask=mask, other=0.0).to(tl.float32)
    return total
