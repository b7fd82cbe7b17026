"""Addition and norm in Triton: each tensor is read once and written once, forward and backward.

Rows of C numbers, ROWS to a program; CP is C rounded up to a power of two. With s = x + delta and
r = 1 / sqrt(mean(s^2) + eps), y = s r w. Backward, from dy and the gradient ds of s by everything that follows:

    dx = d delta = ds + r (w dy - s r mean(w dy s r)),    dw = sum over rows of dy s r

What is kept of s has the dtype of y: its rounding, relative 2^-9 in bfloat16, is that which the product reads y with.
Each program adds up the dw of its rows in their order; those parts are then added in a fixed order as well.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from zoo.kernels.launching import Tile, cdiv, launch, n_processors, next_power_of_2
from zoo.kernels.registration import differentiable, opaque


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`zoo.kernels.add_rms_norm`: x + delta, and its norm in `dtype`, both [..., C]."""
    keeps = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, delta, weight))
    if delta is None and torch.compiler.is_compiling():  # an op may not return its input
        delta = torch.zeros_like(x)
    delta = delta if delta is None else delta.contiguous()
    total, normed, _, _ = _add_norm(x.contiguous(), delta, weight.contiguous(), eps, dtype, keeps)
    return total, normed


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


def _forward(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """s (x itself without a delta), y, what is kept of s, and r; the last two empty unless `keeps`.

    Where s has the dtype of y already, s itself is kept, and the third is empty as well.
    """
    results = _forward_fake(x, delta, weight, eps, dtype, keeps)
    tiles, constants = _tiles(x.shape[-1])
    n_rows = x.numel() // x.shape[-1]
    arguments = x, delta, weight, *results, n_rows, eps
    constants = {**constants, "ADD": delta is not None, "KEEP": keeps, "COPY": results[2].numel() > 0}
    launch(_add_norm_fwd_kernel, lambda tile: (cdiv(n_rows, tile["ROWS"]),), arguments, constants, tiles, x.device)
    return results


def _forward_fake(x, delta, weight, eps, dtype, keeps):
    total = x if delta is None else x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, delta.dtype))
    copies = keeps and (delta is None or total.dtype != dtype)
    kept = x.new_empty(x.shape if copies else 0, dtype=dtype)
    rms = x.new_empty(x.shape[:-1] if keeps else 0, dtype=torch.float32)
    return total, x.new_empty(x.shape, dtype=dtype), kept, rms


def _backward(
    dy: torch.Tensor,
    ds: torch.Tensor | None,
    kept: torch.Tensor,
    rms: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    delta_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, d delta (empty where dx serves), dw."""
    C = kept.shape[-1]
    n_rows = kept.numel() // C
    tiles, constants = _tiles(C)
    programs = max(1, min(cdiv(n_rows, tiles[0]["ROWS"]), 4 * n_processors(kept.device)))
    dx, ddelta, dw = _backward_fake(dy, ds, kept, rms, weight, dtype, delta_dtype)
    part = kept.new_empty(programs, C, dtype=torch.float32)
    ds = ds if ds is None else ds.contiguous()
    arguments = dy.contiguous(), ds, kept, rms, weight, dx, ddelta, part, n_rows
    constants = {**constants, "HAS_DS": ds is not None, "TWO": delta_dtype != dtype}
    launch(_add_norm_bwd_kernel, lambda tile: (programs,), arguments, constants, tiles, kept.device)
    return dx, ddelta, part.sum(0).to(dw.dtype)


def _backward_fake(dy, ds, kept, rms, weight, dtype, delta_dtype):
    ddelta = kept.new_empty(0 if delta_dtype == dtype else kept.shape, dtype=delta_dtype)
    return kept.new_empty(kept.shape, dtype=dtype), ddelta, weight.new_empty(weight.shape)


@cache
def _tiles(width: int) -> tuple[list[Tile], dict]:
    padded = next_power_of_2(width)
    tile = dict(ROWS=max(1, 2048 // padded), num_warps=4 if padded <= 2048 else 8)
    return [tile], dict(C=width, CP=padded)


def _setup_context(ctx, inputs, output) -> None:
    x, delta, weight, *_ = inputs
    ctx.dtypes = x.dtype, x.dtype if delta is None else delta.dtype
    ctx.adds = delta is not None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    total, _, kept, rms = output
    ctx.save_for_backward(kept if kept.numel() or not rms.numel() else total, rms, weight)


def _gradient(ctx, ds, dy, *_, compiling: bool):
    kept, rms, weight = ctx.saved_tensors
    x_dtype, delta_dtype = ctx.dtypes
    if dy is None:  # nobody asked for the norm
        dx, ddelta, dw = (None, None, None) if ds is None else (ds.to(x_dtype), ds.to(delta_dtype), None)
    else:
        backward: Any = _backward_op if compiling else _backward
        dx, ddelta, dw = backward(dy, ds, kept, rms, weight, x_dtype, delta_dtype)
        ddelta = dx if delta_dtype == x_dtype else ddelta
    return dx, ddelta if ctx.adds else None, dw, None, None, None


_backward_op = opaque("add_rms_norm_backward", _backward, _backward_fake)
_add_norm = differentiable("add_rms_norm", _forward, _forward_fake, _setup_context, _gradient)
