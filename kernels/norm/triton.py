"""The norm in Triton: x is read as it lies, as a piece of a larger product, and written once.

torch's own norm takes one weight for all heads, and copies x first if its rows are not dense. x [B, T, heads, D]: any
strides, but 1 in the last axis; weight [D] or [heads, D]; results are contiguous. Backward, with y = x r w and
r = 1 / sqrt(mean(x^2) + eps):

    dx = r (w dy - x r mean(w dy x r)),    dw = sum over rows of dy x r

Each program adds up the dw of its rows in their order; those parts are then added in a fixed order as well.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(x, o_row, m_row, i_h, o_d, T, x_b, x_t, x_h, D: tl.constexpr):
    """Pointers to rows [ROWS, DP] of one head, and which of the elements exist."""
    p_x = x + (o_row // T * x_b + o_row % T * x_t + i_h.to(tl.int64) * x_h)[:, None] + o_d[None, :]
    return p_x, m_row[:, None] & (o_d < D)[None, :]


@triton.jit
def _rms_norm_fwd_kernel(
    x, weight, out, n_rows, T, H, eps, x_b, x_t, x_h, w_h, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    i_h, o_d = tl.program_id(1), tl.arange(0, DP)
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    p_x, mask = _rows(x, o_row, o_row < n_rows, i_h, o_d, T, x_b, x_t, x_h, D)
    b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
    b_w = tl.load(weight + i_h * w_h + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_r = 1.0 / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps)
    b_y = b_x * b_r[:, None] * b_w[None, :]
    tl.store(out + (o_row * H + i_h)[:, None] * D + o_d[None, :], b_y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_bwd_kernel(
    x, weight, dy, dx, part, n_rows, T, H, eps, x_b, x_t, x_h, dy_b, dy_t, dy_h, w_h,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx, and one part of dw, part [programs, H, D]."""
    i_h, o_d = tl.program_id(1), tl.arange(0, DP)
    b_w = tl.load(weight + i_h * w_h + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_dw = tl.zeros([DP], tl.float32)
    for i in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        o_row = tl.full([1], 0, tl.int64) + i * ROWS + tl.arange(0, ROWS)
        p_x, mask = _rows(x, o_row, o_row < n_rows, i_h, o_d, T, x_b, x_t, x_h, D)
        p_dy, _ = _rows(dy, o_row, o_row < n_rows, i_h, o_d, T, dy_b, dy_t, dy_h, D)
        b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy, mask=mask, other=0.0).to(tl.float32)
        b_r = 1.0 / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps)
        b_normed = b_x * b_r[:, None]
        b_dn = b_dy * b_w[None, :]
        b_mean = tl.sum(b_dn * b_normed, 1) / D
        b_dx = (b_dn - b_normed * b_mean[:, None]) * b_r[:, None]
        tl.store(dx + (o_row * H + i_h)[:, None] * D + o_d[None, :], b_dx.to(dx.dtype.element_ty), mask=mask)
        b_dw += tl.sum(b_dy * b_normed, 0)
    tl.store(part + (tl.program_id(0) * H + i_h) * D + o_d, b_dw, mask=o_d < D)
