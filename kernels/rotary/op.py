"""The rotation by the kernel: launch and gradient."""

from __future__ import annotations

from functools import cache

import torch

from zoo.kernels.launching import Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.registration import differentiable, opaque
from zoo.kernels.rotary import triton as kernels


def rotate(x: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.rotate`: x [B, T, 2 R] or [B, T, H, 2 R] -> the same shape, contiguous."""
    flat = x.unsqueeze(2) if x.dim() == 3 else x
    turn = _rotate.op if torch.compiler.is_compiling() else _rotate.eager
    return turn(flat, cos_BTR.contiguous(), sin_BTR.contiguous()).view(x.shape)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> torch.Tensor:
    x = dense_rows(x)
    B, T, H, D = x.shape
    out = x.new_empty(x.shape)
    table_b = cos.stride(0) if cos.shape[0] > 1 else 0
    arguments = x, cos, sin, out, B * T * H, T, H, *x.stride()[:3], table_b
    constants = dict(R=D // 2, RP=next_power_of_2(D // 2), BACK=back)
    launch(
        kernels._rotate_kernel,
        lambda tile: (cdiv(B * T * H, tile["ROWS"]),),
        arguments,
        constants,
        _tiles(D // 2),
        x.device,
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
