"""The rotation in Triton: x is read once and written once, where torch makes eight passes.

A program turns ROWS rows, (token, head); the gradient is turned back by the same kernel. x [B, T, heads, 2 R]: any
strides, but 1 in the last axis; the result is contiguous.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from zoo.kernels.launching import Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.registration import differentiable, opaque


def rotate(x: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.rotate`: x [B, T, 2 R] or [B, T, H, 2 R] -> the same shape, contiguous."""
    flat = x.unsqueeze(2) if x.dim() == 3 else x
    return _rotate(flat, cos_BTR.contiguous(), sin_BTR.contiguous()).view(x.shape)


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


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> torch.Tensor:
    x = dense_rows(x)
    B, T, H, D = x.shape
    out = x.new_empty(x.shape)
    table_b = cos.stride(0) if cos.shape[0] > 1 else 0
    arguments = x, cos, sin, out, B * T * H, T, H, *x.stride()[:3], table_b
    constants = dict(R=D // 2, RP=next_power_of_2(D // 2), BACK=back)
    launch(
        _rotate_kernel, lambda tile: (cdiv(B * T * H, tile["ROWS"]),), arguments, constants, _tiles(D // 2), x.device
    )
    return out


@cache
def _tiles(width: int) -> list[Tile]:
    return [dict(ROWS=max(4, 1024 // next_power_of_2(width)), num_warps=4)]


def _forward(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _turn(x, cos, sin, False)


def _backward(grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _turn(grad, cos, sin, True)


def _fake(x, cos, sin):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient(ctx, grad, *, compiling: bool):
    return (_backward_op if compiling else _backward)(grad, *ctx.saved_tensors), None, None


_backward_op = opaque("rotate_backward", _backward, _fake)
_rotate = differentiable("rotate", _forward, _fake, _setup_context, _gradient)
