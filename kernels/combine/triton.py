"""Gated sum of branch outputs, fused: forward reads each branch once and writes once; backward likewise.

Rows are (batch, token, head), V channels each; logits are [rows, P]. Up to four branches, as pointers o0..o3.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gate(logits, o_row, n_rows, BRANCH: tl.constexpr, P: tl.constexpr):
    return tl.sigmoid(tl.load(logits + o_row * P + BRANCH, mask=o_row < n_rows, other=0.0).to(tl.float32))


@triton.jit
def _gated_sum_fwd_kernel(
    logits, o0, o1, o2, o3, out, n_rows, V: tl.constexpr, VP: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, VP)
    offset = o_row[:, None] * V + o_c[None, :]
    mask = (o_row < n_rows)[:, None] & (o_c < V)[None, :]
    b_sum = tl.zeros([ROWS, VP], tl.float32)
    for i in tl.static_range(P):
        b_o = tl.load((o0, o1, o2, o3)[i] + offset, mask=mask, other=0.0).to(tl.float32)
        b_sum += _gate(logits, o_row, n_rows, i, P)[:, None] * b_o
    tl.store(out + offset, b_sum.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated_sum_bwd_kernel(
    logits, o0, o1, o2, o3, do, dlogits, do0, do1, do2, do3, n_rows,
    V: tl.constexpr, VP: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, VP)
    offset = o_row[:, None] * V + o_c[None, :]
    mask = (o_row < n_rows)[:, None] & (o_c < V)[None, :]
    b_do = tl.load(do + offset, mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(P):
        b_gate = _gate(logits, o_row, n_rows, i, P)
        b_o = tl.load((o0, o1, o2, o3)[i] + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store((do0, do1, do2, do3)[i] + offset, (b_gate[:, None] * b_do).to(do0.dtype.element_ty), mask=mask)
        b_dlogit = tl.sum(b_o * b_do, 1) * b_gate * (1 - b_gate)
        tl.store(dlogits + o_row * P + i, b_dlogit.to(dlogits.dtype.element_ty), mask=o_row < n_rows)
