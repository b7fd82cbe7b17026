"""The rotation in Triton: x is read once and written once, where torch makes eight passes.

A program turns ROWS rows, (token, head); the gradient is turned back by the same kernel. x [B, T, heads, 2 R]: any
strides, but 1 in the last axis; the result is contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rotate_kernel(
    x, cos, sin, out, n_rows, T, H, x_b, x_t, x_h, table_b,
    R: tl.constexpr, RP: tl.constexpr, BACK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, RP)
    i_b, i_t, i_h = o_row // H // T, o_row // H % T, o_row % H
    mask = (o_row < n_rows)[:, None] & (o_c < R)[None, :]
    p_x = x + (i_b * x_b + i_t * x_t + i_h * x_h)[:, None] + o_c[None, :]
    p_table = (i_b * table_b + i_t * R)[:, None] + o_c[None, :]
    b_cos, b_sin = tl.load(cos + p_table, mask=mask, other=0.0), tl.load(sin + p_table, mask=mask, other=0.0)
    if BACK:
        b_sin = -b_sin
    b_left, b_right = (
        tl.load(p_x, mask=mask, other=0.0).to(tl.float32),
        tl.load(p_x + R, mask=mask, other=0.0).to(tl.float32),
    )
    p_out = out + o_row[:, None] * (2 * R) + o_c[None, :]
    tl.store(p_out, (b_left * b_cos - b_right * b_sin).to(out.dtype.element_ty), mask=mask)
    tl.store(p_out + R, (b_right * b_cos + b_left * b_sin).to(out.dtype.element_ty), mask=mask)
