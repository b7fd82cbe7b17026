"""The gate of SwiGLU in Triton between torch's products. Elements are independent.

Forward: h = silu(g) u, with [g ; u] = [W_gate ; W_up] x, one product, which is kept; h is not. Backward, one pass over
g, u and dh gives h again, dg = dh u sigma(g) (1 + g (1 - sigma(g))) and du = dh silu(g), written over dh, g and u. The
gradient of x is then one product as well, summed in float32, where two products would round one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows [ROWS, 1] and columns [1, COLS] of a program, and which of the elements exist."""
    n_across = tl.cdiv(F, COLS)
    o_row = ((tl.program_id(0) // n_across).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    o_c = (tl.program_id(0) % n_across * COLS + tl.arange(0, COLS))[None, :]
    return o_row, o_c, (o_row < n_rows) & (o_c < F)


@triton.jit
def _swiglu_fwd_kernel(both, hidden, n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    o_row, o_c, mask = _place(n_rows, F, ROWS, COLS)
    p_gate = both + o_row * (2 * F) + o_c
    b_g = tl.load(p_gate, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(p_gate + F, mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden + o_row * F + o_c, (b_g * tl.sigmoid(b_g) * b_u).to(hidden.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_bwd_kernel(dh, both, dboth, n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    """h over dh; the gradients of g and u, which may lie over g and u."""
    o_row, o_c, mask = _place(n_rows, F, ROWS, COLS)
    p_h, o_gate = dh + o_row * F + o_c, o_row * (2 * F) + o_c
    b_dh = tl.load(p_h, mask=mask, other=0.0).to(tl.float32)
    b_g = tl.load(both + o_gate, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(both + o_gate + F, mask=mask, other=0.0).to(tl.float32)
    b_sigma = tl.sigmoid(b_g)
    b_silu = b_g * b_sigma
    b_dg = b_dh * b_u * (b_sigma + b_silu * (1 - b_sigma))
    tl.store(p_h, (b_silu * b_u).to(dh.dtype.element_ty), mask=mask)
    tl.store(dboth + o_gate, b_dg.to(dboth.dtype.element_ty), mask=mask)
    tl.store(dboth + o_gate + F, (b_dh * b_silu).to(dboth.dtype.element_ty), mask=mask)
